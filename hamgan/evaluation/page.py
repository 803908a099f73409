"""The look of a report: one page of HTML with style and script in it."""

STYLE = """
:root { color-scheme: light dark;
  --back: #fff; --text: #1b1b20; --muted: #5d5d68; --rule: #dcdce3; --panel: #f5f5f8;
  --c0: #2563eb; --c1: #d9480f; --c2: #0d8a5f; --c3: #9333c9; --c4: #a16207; --c5: #0e7490; }
@media (prefers-color-scheme: dark) { :root {
  --back: #131417; --text: #e9e9ee; --muted: #a3a3b0; --rule: #34353d; --panel: #1d1e23;
  --c0: #74a7ff; --c1: #ff9561; --c2: #4fd1a1; --c3: #d09bff; --c4: #e5b94e; --c5: #5cc8de; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem 1rem 3rem;
  background: var(--back); color: var(--text); font: 1rem/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.7rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 2.5rem 0 .75rem; padding-top: 1rem; border-top: 1px solid var(--rule);
  font-size: 1.2rem; }
code, pre { font-family: ui-monospace, monospace; font-size: .85rem; overflow-wrap: anywhere; }
pre { margin: 0; max-height: 30rem; overflow: auto; padding: .8rem 1rem; border-radius: .5rem;
  background: var(--panel); overflow-wrap: normal; }
header p, .note, .missing, figcaption, footer { color: var(--muted); font-size: .9rem; }
.protocol { margin: 0 0 1rem; max-width: 60rem; }
header p { margin: .3rem 0 1.2rem; }
.missing { margin: 0; font-style: italic; }
figure { margin: 0; }
figcaption { margin-top: .3rem; }
img, svg { display: block; max-width: 100%; height: auto; }
img { border-radius: .4rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr)); gap: .75rem;
  margin-bottom: 1rem; }
.card { padding: .7rem .9rem; border-radius: .5rem; background: var(--panel); }
.card .name { color: var(--muted); font-size: .85rem; }
.card .value { font-size: 1.5rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.card .note { font-size: .8rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr));
  gap: 1rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr));
  gap: 1.5rem 1.25rem; }
.chart figcaption { margin: 0 0 .3rem; color: var(--text); }
.chart svg { width: 100%; }
.chart svg * { stroke-linejoin: round; stroke-linecap: butt; }
.wide { overflow-x: auto; max-height: 30rem; }
.whole { max-height: none; }
.whole td, .whole th { white-space: nowrap; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem 1.2rem .3rem 0; border-bottom: 1px solid var(--rule);
  text-align: left; vertical-align: top; }
th { font-weight: 600; white-space: nowrap; }
.n { text-align: right; white-space: nowrap; }
.frames { display: flex; gap: .75rem; overflow-x: auto; }
.frames figure { display: none; flex: none; width: 16rem; }
.frames .still { display: block; }
.playing .frames figure { display: none; width: auto; max-width: 100%; }
.playing .frames .shown { display: block; }
.controls { display: flex; gap: .75rem; align-items: center; max-width: 40rem;
  margin-bottom: .75rem; }
.controls[hidden] { display: none; }
.controls input { flex: 1; min-width: 0; accent-color: var(--c0); }
button { min-width: 4.5rem; padding: .35rem .8rem; border: 1px solid var(--rule);
  border-radius: .4rem; background: var(--panel); color: inherit; font: inherit; cursor: pointer; }
footer { margin-top: 2.5rem; }
"""

SCRIPT = """
for (const film of document.querySelectorAll(".film")) {
  const frames = film.querySelectorAll("figure"), controls = film.querySelector(".controls");
  if (!controls) continue;
  const slider = controls.querySelector("input"), button = controls.querySelector("button");
  let timer = null;
  const show = () => frames.forEach(
    (frame, i) => frame.classList.toggle("shown", i === Number(slider.value)));
  const stop = () => { clearInterval(timer); timer = null; button.textContent = "Play"; };
  slider.addEventListener("input", () => { stop(); show(); });
  button.addEventListener("click", () => {
    if (timer) return stop();
    if (slider.value === slider.max) slider.value = 0;
    button.textContent = "Stop";
    show();
    timer = setInterval(() => {
      slider.value++;
      show();
      if (slider.value === slider.max) stop();
    }, 500);
  });
  film.classList.add("playing");
  controls.hidden = false;
  show();
}
"""

# The policy has the browser itself refuse whatever would come from outside.
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:;
  style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p>{subtitle}</p>
</header>
{body}
<footer>Written by HamGAN {version}.</footer>
<script>{script}</script>
</body>
</html>
"""
