"""The page's pictures, and its server over real HTTP; in a browser: test_serving_browser.py."""

import contextlib
import http.client
import io
import json
import os
import threading

import gin
import numpy as np
import pytest
import served
import tensorflow as tf
from PIL import Image

from hamgan import sampling
from hamgan.cli import sampled, serve
from hamgan.drawing import interpolation
from hamgan.exploring import ham_view
from hamgan.serving import controls, studio, web

OFFER = controls.Offer(
    names=("cat", "dog", "cow"), weights=("ema", "raw"), networks=("generator", "discriminator")
)
SECRET = "nobody's business"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder of a run, its experiment, its studio); beside the folder is a file."""
    folder = tmp_path_factory.mktemp("around") / "run"
    folder.mkdir()
    (folder.parent / "secret.txt").write_text(SECRET)
    (folder / "link.txt").symlink_to(folder.parent / "secret.txt")
    experiment = served.make_run(str(folder))
    yield folder, experiment, serve.load(serve.Request(model_dir=str(folder)), experiment)
    gin.clear_config()


@contextlib.contextmanager
def running(drawn):
    """The port of a server that answers in a thread."""
    uvicorn = pytest.importorskip("uvicorn", reason="the extra web isn't installed")
    with web.listen("localhost", 0) as sock:
        config = uvicorn.Config(web.application(drawn), log_level="critical")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs=dict(sockets=[sock]))
        thread.start()
        try:
            yield sock.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(30)


@pytest.fixture(scope="module")
def port(run):
    with running(run[2]) as port:
        yield port


def get(port, path, **headers):
    """(status, headers, body); the path goes out as it is, with its dots."""
    connection = http.client.HTTPConnection("localhost", port, timeout=120)
    try:
        connection.putrequest("GET", path, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def shown(port, path):
    """A picture's pixels."""
    status, headers, body = get(port, path)
    assert (status, headers["Content-Type"]) == (200, "image/png"), body
    with Image.open(io.BytesIO(body)) as image:
        return np.asarray(image)


@pytest.mark.parametrize(
    "query, flags",
    [
        ("class=dog&seed=7", dict(classes=["dog"], seeds=["7"])),
        (
            "class=%231&seed=2147483640&weights=raw&psi=0.5&truncation=0.7&count=4",
            dict(
                classes=["#1"],
                seeds=["2147483640-2147483643"],
                weights="raw",
                psi=["0.5"],
                truncation=["0.7"],
            ),
        ),
    ],
)
def test_a_picture_is_that_of_the_sample_command(run, port, tmp_path, query, flags):
    folder, experiment, _ = run
    path = str(tmp_path / "samples.npz")
    sampled.run(sampled.Request(model_dir=str(folder), output=path, **flags), experiment)
    with np.load(path) as file:
        expected = file["images"]
    assert expected.dtype == np.uint8
    assert expected.std() > 10  # there is something to see
    np.testing.assert_array_equal(shown(port, f"/image?{query}"), np.concatenate(expected, axis=1))


def test_every_control_changes_the_picture(port):
    base = "batch_norm=moving_averages"  # standing statistics of every look take their time
    first = shown(port, f"/image?{base}")
    found = [first.tobytes()]
    for query in ("class=dog", "seed=1", "psi=0.5", "truncation=0.5", "weights=raw", None):
        picture = shown(port, f"/image?{base}&{query}" if query else "/image")
        assert picture.shape == first.shape
        found.append(picture.tobytes())
    assert len(set(found)) == 7
    np.testing.assert_array_equal(shown(port, f"/image?{base}&seed=0&class=cat&psi=1"), first)


def test_a_way_goes_from_one_image_to_the_other(run, port):
    for query, end in (
        ("way=seeds&to_seed=9", "class=dog&seed=9"),
        ("way=classes&to_class=%232", "class=%232&seed=3"),
    ):
        row = shown(port, f"/way?class=dog&seed=3&steps=4&{query}")
        assert row.shape == (32, 5 * 32, 3)
        images = row.reshape(32, 5, 32, 3).swapaxes(0, 1).astype(int)
        ends = [shown(port, "/image?class=dog&seed=3"), shown(port, f"/image?{end}")]
        for image, expected in zip((images[0], images[-1]), ends, strict=True):
            assert np.abs(image - expected).max() <= 1
        assert (np.abs(np.diff(images, axis=0)).max(axis=(1, 2, 3)) > 1).all()
    # The middle one too is what the library has there.
    asked = controls.way([("to_seed", "9"), ("steps", "2"), ("weights", "raw")], OFFER)
    _, _, drawn = run
    with drawn._turn(asked.look) as sampler:
        (expected,) = interpolation.between(
            sampler, way="seeds", classes=[0], seeds=[0, 9], steps=2
        )
    row = shown(port, "/way?to_seed=9&steps=2&weights=raw")
    np.testing.assert_array_equal(
        row[:, 32:64], np.clip(np.rint((expected[1] + 1) * 127.5), 0, 255).astype(np.uint8)
    )


def test_the_ham_viewer_looks_at_the_image_that_is_shown(run, monkeypatch):
    _, _, drawn = run
    views, png = [], ham_view.png
    monkeypatch.setattr(
        ham_view, "png", lambda found, **more: views.append((found, more)) or png(found, **more)
    )
    pairs = [("class", "dog"), ("seed", "5"), ("weights", "raw"), ("pixels", "1:2")]
    asked = controls.ham(pairs, OFFER)
    data = drawn.ham(asked)
    ((found, settings),) = views
    image = drawn.images(controls.images(pairs[:3], OFFER))[0]
    seen = np.clip(np.rint((found.image + 1) * 127.5), 0, 255)
    assert np.abs(seen - image).max() <= 1
    assert found.codes.shape[-1] == 3 and settings["pixels"] == ((1, 2),)
    width, height = served.size_of(data)
    assert width > 500 and height > 500
    # The discriminator's is another picture, of the same image.
    drawn.ham(controls.ham([*pairs, ("network", "discriminator")], OFFER))
    assert views[1][0].output.shape == (1,)
    np.testing.assert_allclose(views[1][0].image, found.image, atol=1e-5)


@pytest.mark.parametrize(
    "path, message",
    [
        ("/image?class=gog", "No class is named 'gog'; did you mean 'dog'"),
        ("/image?class=%233", "Label 3 is outside the classes of this generator, 0 to 2"),
        ("/image?class=all", "class must be one class, got 'all'"),
        ("/image?seed=-1", "seed must be a whole number from 0 to 2147483647, got '-1'"),
        ("/image?seed=2147483648", "from 0 to 2147483647, got '2147483648'"),
        ("/image?seed=1e3", "seed must be a whole number"),
        ("/image?seed=%D9%A1", "seed must be a whole number"),  # a digit, of Arabic
        ("/image?seed=2147483647&count=2", "go beyond the last seed"),
        ("/image?count=17", "count must be a whole number from 1 to 16, got '17'"),
        ("/image?psi=-0.5", "psi must be a number from 0 to 2"),
        ("/image?psi=2.1", "psi must be a number from 0 to 2"),
        ("/image?psi=nan", "psi must be a number from 0 to 2"),
        ("/image?truncation=0", "truncation must be a number from 0.01 to 10"),
        ("/image?weights=best", "weights must be one of ema, raw, got 'best'"),
        ("/image?batch_norm=batch", "batch_norm must be one of"),
        ("/image?seed=1&seed=2", "seed is given twice"),
        ("/image?path=/etc/passwd", "There is no control 'path'"),
        ("/image?checkpoint=../x", "There is no control 'checkpoint'"),
        ("/image?class=" + "x" * 201, "class has 201 characters"),
        ("/way?to_seed=0", "to_seed must be another one"),
        ("/way?way=classes&to_class=cat", "to_class must be another one"),
        ("/way?way=both", "way must be one of seeds, classes"),
        ("/way?to_seed=1&steps=1000", "steps must be a whole number from 1 to 32"),
        ("/ham?network=critic", "network must be one of generator, discriminator"),
        ("/ham?pixels=1", "pixels must be ROW:COLUMN"),
        ("/ham?pixels=99:0", "Pixels are [row, column] within the map"),
    ],
)
def test_what_can_not_be_is_refused_in_words(run, port, path, message):
    status, headers, body = get(port, path)
    assert (status, headers["Content-Type"]) == (400, "application/json")
    words = json.loads(body)["error"]
    assert message in words
    assert "Traceback" not in words and str(run[0]) not in words


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/../../../../../../../../etc/passwd",
        "/%2e%2e/secret.txt",
        "/%2e%2e%2fsecret.txt",
        "/..%5csecret.txt",
        "//etc/passwd",
        "/etc/passwd",
        "/%2fetc%2fpasswd",
        "/link.txt",
        "/config.gin",
        "/page.html",
        "/page.js/../../studio.py",
        "/page.css%00.py",
        "/file=/etc/passwd",
        "{absolute}",
    ],
)
def test_no_file_can_be_read(run, port, path):
    folder, _, _ = run
    status, _, body = get(port, path.format(absolute=folder.parent / "secret.txt"))
    assert status == 404
    assert SECRET.encode() not in body and b"root:" not in body and b"import" not in body


def test_a_failure_of_the_server_tells_no_paths(run, monkeypatch):
    _, _, drawn = run

    def fail(asked):
        raise ValueError(f"/home/somebody/{SECRET}")

    monkeypatch.setattr(drawn, "images", fail)
    with running(drawn) as port:
        status, _, body = get(port, "/image")
    assert status == 500
    assert json.loads(body) == {"error": "The picture couldn't be drawn: see the server's log."}


def test_the_page_needs_nothing_from_elsewhere_and_names_no_folder(run, port):
    folder, _, _ = run
    for path, kind in (("/", "html"), ("/page.css", "css"), ("/page.js", "javascript")):
        status, headers, body = get(port, path)
        assert status == 200 and kind in headers["Content-Type"]
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert (
            b"http:" not in body
            and b"https:" not in body
            and b"//" not in body.replace(b"// ", b"")
        )
    _, _, body = get(port, "/about")
    assert str(folder) not in body.decode()
    assert json.loads(body)["classes"] == served.NAMES
    assert json.loads(body)["weights"] == ["ema", "raw"]


def test_other_names_for_this_machine_are_refused(port):
    assert get(port, "/about", Host="evil.example")[0] == 400
    assert get(port, "/about", Host="localhost")[0] == 200
    assert get(port, "/image", Host="evil.example:80")[0] == 400


def test_only_reading_is_answered(port):
    connection = http.client.HTTPConnection("localhost", port, timeout=30)
    connection.request("POST", "/image", body="seed=1")
    assert connection.getresponse().status == 405
    connection.close()


def test_moments_are_computed_once_for_a_look(run, monkeypatch):
    _, _, drawn = run
    computed = []
    monkeypatch.setattr(
        sampling.StandingStatistics, "compute", lambda self, seed: computed.append(self)
    )
    look = controls.Look(weights="ema", batch_norm="standing_statistics", psi=0.33)
    for seed in (1, 2):
        drawn.images(controls.Images(look=look, label=0, seed=seed))
    assert len(computed) == 1
    del drawn._looks[look]  # its moments aren't any


def test_more_than_can_wait_are_sent_away(run, monkeypatch):
    _, _, drawn = run
    monkeypatch.setattr(drawn, "_waiting", threading.BoundedSemaphore(1))
    asked = controls.images([], OFFER)
    with drawn._turn(asked.look):
        with pytest.raises(studio.Busy, match="Many pictures are being drawn"):
            drawn.images(asked)
    assert drawn.images(asked).shape == (1, 32, 32, 3)


def test_a_checkpoint_without_average_offers_none(run, tmp_path):
    folder, experiment, _ = run
    reader = tf.train.load_checkpoint(str(folder / "checkpoints" / "ckpt-0"))
    assert any("generator_ema" in name for name in reader.get_variable_to_shape_map())
    held = {
        name: tf.Variable(value)
        for name, value in sampling.contents.load(str(folder / "checkpoints" / "ckpt-0")).items()
        if name.split("/")[0] in ("generator", "step")
    }
    os.makedirs(tmp_path / "checkpoints")
    sampling.contents.write(str(tmp_path / "checkpoints" / "ckpt-0"), held)
    request = serve.Request(model_dir=str(tmp_path), weights="raw")
    found = serve.load(request, experiment).offer
    assert (found.weights, found.networks) == (("raw",), ("generator",))
    assert found.names == ("0", "1", "2")
    with pytest.raises(ValueError, match="holds no generator_ema/ variables"):
        serve.load(serve.Request(model_dir=str(tmp_path)), experiment)


def test_a_port_that_is_taken_is_told():
    with web.listen("localhost", 0) as sock:
        taken = sock.getsockname()[1]
        assert web.address("localhost", sock) == f"http://localhost:{taken}/"
        with pytest.raises(
            ValueError, match=f"can't be served at localhost, port {taken} .*--port"
        ):
            web.listen("localhost", taken)
    with pytest.raises(ValueError, match="can't be served at no.such.host.invalid"):
        web.listen("no.such.host.invalid", 0)


def test_a_missing_extra_is_told(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "starlette", None)
    with pytest.raises(ValueError, match=r"the extra web .*pip install 'hamgan\[web\]'"):
        web.check()
