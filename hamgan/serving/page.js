"use strict";
// Each picture is drawn one request at a time; of what is asked for meanwhile, the last is next.
const controls = document.getElementById("controls");
const panels = [...document.querySelectorAll("[data-picture]")];
const anyOf = (panel) => panel.querySelectorAll(".own [name]");
const wanted = new Map();
const busy = new Set();
let about;

function fill(select, pairs) {
  select.replaceChildren(...pairs.map(([value, words]) => new Option(words, value)));
}

function query(panel) {
  const pairs = [...controls.elements, ...anyOf(panel)]
    .filter((control) => control.name && !control.disabled && control.value !== "")
    .map((control) => [control.name, control.value]);
  return `${panel.dataset.picture}?${new URLSearchParams(pairs)}`;
}

function say(panel, state, words, refusal = "") {
  panel.dataset.state = state;
  panel.querySelector(".state").textContent = words;
  panel.querySelector(".refusal").textContent = refusal;
}

async function show(panel, blob, asked) {
  const image = panel.querySelector("img");
  const before = image.src;
  image.src = URL.createObjectURL(blob);
  await image.decode();
  if (before) URL.revokeObjectURL(before);
  if (!image.classList.contains("smooth")) {
    // Small images as large as the eye needs them, by whole factors.
    image.width = image.naturalWidth * Math.max(1, Math.round(128 / about.image_size));
  }
  image.hidden = false;
  image.dataset.shows = asked;
  say(panel, "done", "");
}

async function answer(panel, asked) {
  const begun = Date.now();
  const clock = setInterval(() => {
    say(panel, "drawing", `Drawing… ${Math.round((Date.now() - begun) / 1000)} s`);
  }, 1000);
  try {
    say(panel, "drawing", "Drawing…");
    const response = await fetch(asked);
    if (response.ok) await show(panel, await response.blob(), asked);
    else say(panel, "refused", "", (await response.json()).error);
  } catch (error) {
    say(panel, "refused", "", `No picture: ${error.message}`);
  } finally {
    clearInterval(clock);
  }
}

async function draw(panel) {
  if (panel.tagName === "DETAILS" && !panel.open) return;
  wanted.set(panel, query(panel));
  if (busy.has(panel)) return;
  busy.add(panel);
  while (wanted.has(panel)) {
    const asked = wanted.get(panel);
    wanted.delete(panel);
    await answer(panel, asked);
  }
  busy.delete(panel);
}

function drawAll() {
  panels.forEach(draw);
}

function choose() {
  const way = document.querySelector("[name=way]").value;
  for (const kind of ["seeds", "classes"]) {
    const label = document.querySelector(`label.${kind}`);
    label.hidden = kind !== way;
    label.querySelector("[name]").disabled = kind !== way;
  }
}

async function begin() {
  about = await (await fetch("about")).json();
  document.getElementById("about").textContent =
    `${about.checkpoint}, step ${about.step}, ${about.classes.length} classes, ` +
    `${about.image_size}×${about.image_size}`;
  const classes = about.classes.map((name, label) => [`#${label}`, name]);
  const named = (name) => document.querySelector(`[name=${name}]`);
  fill(named("class"), classes);
  fill(named("to_class"), classes);
  named("to_class").selectedIndex = Math.min(1, classes.length - 1);
  const words = { ema: "moving average (EMA)", raw: "raw" };
  fill(named("weights"), about.weights.map((name) => [name, words[name]]));
  fill(named("batch_norm"), [["", "as the weights need it"]].concat(
    about.batch_norms.map((name) => [name, name.replace("_", " ")])));
  fill(named("network"), about.networks.map((name) => [name, name]));
  document.querySelector("[data-picture=ham]").hidden = !about.networks.length;
  choose();

  const slide = document.getElementById("slide");
  slide.addEventListener("input", () => { named("psi").value = slide.value; });
  named("psi").addEventListener("change", () => { slide.value = named("psi").value; });
  document.getElementById("any").addEventListener("click", () => {
    named("seed").value = Math.floor(Math.random() * 2 ** 31);
    drawAll();
  });
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("change", drawAll);
  for (const panel of panels) {
    panel.querySelector(".own").addEventListener("change", () => { choose(); draw(panel); });
    panel.addEventListener("toggle", () => draw(panel));
  }
  drawAll();
}

begin().catch((error) => {
  document.getElementById("about").textContent = `The server doesn't answer: ${error.message}`;
});
