"""The report in a browser: nothing is fetched, nothing complains, and the view in 3D shows and tells the same."""

import io
import json
from itertools import pairwise

import numpy as np
import pytest
from browser import PROGRAM, Browser
from matplotlib.image import imread

from dsp_sparse.experiments.evaluation import evaluate_run
from dsp_sparse.experiments.report import write_report
from dsp_sparse.palette import palette

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium here")
DESKTOP, PHONE = (1280, 800), (390, 844)
CANVAS = "#viewer canvas"
BORDER = 10


@pytest.fixture(scope="module")
def page(rooms_store, build_run, tmp_path_factory):
    """The report of a run whose network is random: what it shows is wrong, but there."""
    run = build_run(tmp_path_factory.mktemp("report") / "run", rooms_store)
    (run / "results.json").write_text(json.dumps({**evaluate_run(run), "steps": 10, "train_seconds": 3.0}))
    return write_report(run)


@pytest.fixture
def browse(tmp_path):
    """`browse(size, …)` opens a browser of that size, and ends it with the test."""
    opened = []

    def start(size=DESKTOP, **more) -> Browser:
        profile = tmp_path / f"profile{len(opened)}"
        profile.mkdir()
        opened.append(Browser(profile, width=size[0], height=size[1], **more))
        return opened[-1]

    yield start
    for browser in opened:
        browser.__exit__()


def choose(browser: Browser, name: str) -> None:
    """Click on a view."""
    place = browser.run(
        f"""(() => {{
        const label = [...document.querySelectorAll('.modes label')].find(l => l.textContent === {name!r});
        label.scrollIntoView({{block: 'center', behavior: 'instant'}});
        const box = label.getBoundingClientRect();
        return [box.x + box.width / 2, box.y + box.height / 2];
        }})()"""
    )
    for kind in ("mousePressed", "mouseReleased"):
        browser.mouse(kind, *place, button="left", clickCount=1)


def pixels(browser: Browser) -> np.ndarray:
    """`[height, width, 3]` of the canvas but for its border and round corners, 0 to 255."""
    return decoded(browser.picture(CANVAS))[BORDER:-BORDER, BORDER:-BORDER]


def decoded(png: bytes) -> np.ndarray:
    return (imread(io.BytesIO(png))[..., :3] * 255).round()


def drawn(image: np.ndarray) -> np.ndarray:
    """Where there is something else than the background."""
    return np.abs(image - image[0, 0]).max(2) > 8


def classes_seen(image: np.ndarray, count: int) -> np.ndarray:
    """Whose class's colour each pixel has, however shaded; -1 where it has none."""
    colours = palette(count) / np.linalg.norm(palette(count), axis=1, keepdims=True)
    unit = image / np.maximum(np.linalg.norm(image, axis=2, keepdims=True), 1)
    likeness = unit @ colours.T
    return np.where(drawn(image) & (likeness.max(2) > 0.999), likeness.argmax(2), -1)


@pytest.mark.parametrize("size, dark", [(DESKTOP, False), (PHONE, True)])
def test_the_page_fetches_nothing_and_fits(page, browse, size, dark):
    browser = browse(size, dark=dark)
    browser.open(page)
    assert browser.requests == [] and browser.complaints == []
    assert browser.run("document.documentElement.scrollWidth") == size[0], "no part is wider than the window"
    links = browser.run("[...document.querySelectorAll('nav a')].map(a => document.querySelector(a.hash) !== null)")
    assert len(links) >= 7 and all(links)
    broken = browser.run("[...document.images].filter(i => !i.naturalWidth || !i.alt).length")
    assert browser.run("document.images.length") >= 2 and broken == 0
    image = pixels(browser)
    assert drawn(image).mean() > 0.1, "the scene fills a good part of the canvas"
    assert (image[0, 0].mean() < 60) == dark


def test_every_view_shows_its_own_colours(page, browse, rooms_store):
    """Labels in the colours of the classes, errors in two colours, and all of them different pictures."""
    browser = browse()
    browser.open(page)
    names = browser.run("[...document.querySelectorAll('.modes span')].map(s => s.textContent)")
    assert names == ["Colour", "Ground truth", "kpfcnn csfr", "Errors", "Affinity"]
    images = {}
    for name in names:
        choose(browser, name)
        images[name] = pixels(browser)
        assert browser.run("document.querySelector('.modes input:checked + span').textContent") == name
    for one, other in pairwise(names):
        assert (np.abs(images[one] - images[other]).max(2) > 30).mean() > 0.02, (one, other)
    count = len(rooms_store.classes)
    seen = classes_seen(images["Ground truth"], count)
    assert (seen >= 0).sum() > 0.9 * drawn(images["Ground truth"]).sum(), "edges of points aside"
    assert len(np.unique(seen[seen >= 0])) >= 5 and 0 not in np.unique(seen), "the ceiling is hidden"
    reddish = images["Errors"][..., 0] > 2 * images["Errors"][..., 1]
    assert 0.05 < reddish.sum() / drawn(images["Errors"]).sum() <= 1.0, "a random network errs"
    assert browser.complaints == []


def test_hovering_tells_what_is_drawn(page, browse, rooms_store):
    """Where the picture has the colour of a class, the point under the pointer is of that class."""
    browser = browse()
    browser.open(page)
    choose(browser, "Ground truth")
    seen = classes_seen(pixels(browser), len(rooms_store.classes))
    place = browser.place(CANVAS)
    uniform = [
        (x, y)
        for y in range(12, len(seen) - 12, 9)
        for x in range(12, seen.shape[1] - 12, 9)
        if seen[y, x] >= 0 and (seen[y - 7 : y + 8, x - 7 : x + 8] == seen[y, x]).all()
    ]
    assert len(uniform) > 20
    for x, y in uniform[:: len(uniform) // 12]:
        browser.mouse("mouseMoved", place["x"] + BORDER + x, place["y"] + BORDER + y)
        browser.picture()  # told with the next frame
        told = browser.run("document.getElementById('told').textContent")
        assert told.startswith(f"ground truth: {rooms_store.classes[seen[y, x]]} · kpfcnn csfr: "), (x, y)
    browser.mouse("mouseMoved", place["x"] + 5, place["y"] + 5)
    browser.picture()
    assert browser.run("document.getElementById('told').textContent") == ""


def test_it_turns_moves_and_zooms(page, browse):
    """With the mouse and with keys; a reset is exactly the first view."""
    browser = browse()
    browser.open(page)
    first = browser.picture(CANVAS)
    place = browser.place(CANVAS)
    x, y = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2

    browser.mouse("mouseWheel", x, y, deltaX=0, deltaY=-100)
    assert browser.picture(CANVAS) == first, "the wheel scrolls the page until the view is clicked"
    y = (place := browser.place(CANVAS))["y"] + place["height"] / 2

    def drag(button="left", modifiers=0):
        browser.mouse("mousePressed", x, y, button=button, clickCount=1, modifiers=modifiers)
        browser.mouse("mouseMoved", x + 90, y + 20, button=button, modifiers=modifiers, buttons=1)
        browser.mouse("mouseReleased", x + 90, y + 20, button=button, modifiers=modifiers)
        browser.mouse("mouseMoved", place["x"] + 3, place["y"] + 3)

    seen = [first]
    for act in (
        drag,
        lambda: drag(modifiers=8),
        lambda: browser.mouse("mouseWheel", x, y, deltaX=0, deltaY=-100),
        lambda: browser.key("+"),
        lambda: browser.key("ArrowLeft"),
    ):
        act()
        seen.append(browser.picture(CANVAS))
        assert seen[-1] not in seen[:-1]
    before, after = (drawn(decoded(seen[i])[BORDER:-BORDER, BORDER:-BORDER]).sum() for i in (2, 3))
    assert after > before, "nearer is larger"
    browser.key("0")
    browser.run("document.activeElement.blur()")
    assert browser.picture(CANVAS) == first
    assert browser.complaints == []


def test_fingers_turn_and_zoom(page, browse):
    browser = browse(PHONE)
    browser.open(page)
    place = browser.place(CANVAS)
    x, y = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2

    def touch(kind, *fingers):
        points = [{"x": a, "y": b, "id": number} for number, (a, b) in enumerate(fingers)]
        browser("Input.dispatchTouchEvent", type=kind, touchPoints=points)

    first = pixels(browser)
    touch("touchStart", (x, y))
    touch("touchMove", (x + 60, y))
    touch("touchEnd")
    turned = pixels(browser)
    assert np.abs(turned - first).max() > 50
    touch("touchStart", (x - 20, y), (x + 20, y))
    touch("touchMove", (x - 60, y), (x + 60, y))
    touch("touchEnd")
    assert drawn(pixels(browser)).sum() > 1.2 * drawn(turned).sum()


def test_affinity_of_chosen_points(page, browse):
    """Every chosen point has a picture of its own, with a red point that nothing hides."""
    browser = browse()
    browser.open(page)
    assert browser.run("document.getElementById('chosen').parentElement.hidden")
    choose(browser, "Affinity")
    options = browser.run("[...document.getElementById('chosen').options].map(o => o.textContent)")
    assert len(options) >= 5 and all(option.startswith("CSFR, ") for option in options)
    pictures = set()
    for number in range(3):
        script = f"chosen.value = {number}; chosen.dispatchEvent(new Event('change'))"
        browser.run(f"(() => {{ const chosen = document.getElementById('chosen'); {script} }})()")
        image = pixels(browser)
        right = image[:, image.shape[1] // 2 :]
        assert ((right[..., 0] > 200) & (right[..., 1:] < 30).all(2)).sum() > 20
        assert "the chosen point" in browser.run("document.getElementById('shown').textContent")
        pictures.add(image.tobytes())
    assert len(pictures) == 3
    assert browser.complaints == []


def test_a_turned_phone_shows_affinity_side_by_side(page, browse):
    """What stood above and below stands left and right, as if the page had been opened so; and back."""
    browser = browse(PHONE)
    browser.open(page)
    choose(browser, "Affinity")
    upright, legend = pixels(browser), "document.getElementById('shown').textContent"
    assert "below: the chosen point" in browser.run(legend)
    browser.resize(*PHONE[::-1])
    turned = pixels(browser)
    assert "right: the chosen point" in browser.run(legend)
    width = turned.shape[1]
    red = (turned[..., 0] > 200) & (turned[..., 1:] < 30).all(2)
    assert red[:, width // 2 :].sum() > 20, "the chosen point is on the right"
    halves = drawn(turned)[:, : width // 2], drawn(turned)[:, width // 2 :]
    assert all(half.mean() > 0.1 for half in halves)
    browser.resize(*PHONE)
    assert np.array_equal(pixels(browser), upright)


def test_the_ceiling_comes_back(page, browse, rooms_store):
    browser = browse()
    browser.open(page)
    choose(browser, "Ground truth")
    browser.run("document.getElementById('ceiling').click()")
    seen = classes_seen(pixels(browser), len(rooms_store.classes))
    ceiling = rooms_store.classes.index("ceiling")
    assert (seen == ceiling).sum() > 0.2 * (seen >= 0).sum()


def test_without_webgl_the_page_says_so(page, browse):
    browser = browse(gl=False)
    browser.open(page)
    assert "needs scripts and WebGL" in browser.run("document.getElementById('viewer').innerText")
    assert not browser.run("document.querySelector('#viewer canvas')")
    assert browser.requests == [] and browser.complaints == []
