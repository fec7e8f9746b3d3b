"""The server's page: its sentences and colours; and the whole journey in a browser, with a real server behind."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import av
import pytest
from browser import TOKEN, chromium, running_server

from wan_s2v.errors import UsageError
from wan_s2v.image import plan_framing

PACKAGE = Path(__file__).parent.parent / "src" / "wan_s2v"
WEB = PACKAGE / "server" / "web"
DEMO = PACKAGE / "assets" / "demo"
SCRIPTS = {path.name: path.read_text(encoding="utf-8") for path in WEB.glob("*.js")}
PAGE = (WEB / "index.html").read_text(encoding="utf-8")
STEPS, LENGTH_S, SIDE = 2, 3.2, 64  # two clips of the embedded model, quickly
PATIENCE_MS = 240_000  # for a machine that is busy with other tests


def _dictionaries() -> dict[str, dict[str, str]]:
    text = SCRIPTS["i18n.js"]
    start = text.index("{", text.index("const DICTIONARIES"))
    return json.JSONDecoder().raw_decode(text, start)[0]


def test_both_languages_have_every_sentence_with_the_same_values():
    english, chinese = _dictionaries()["en"], _dictionaries()["zh"]
    assert list(english) == list(chinese)
    for key, sentence in english.items():
        assert sentence.strip()
        assert chinese[key].strip()
        assert set(re.findall(r"\{\w+\}", sentence)) == set(re.findall(r"\{\w+\}", chinese[key])), key


def test_every_sentence_that_is_asked_for_exists_and_is_asked_for():
    keys = set(_dictionaries()["en"])
    code = PAGE + "".join(text for name, text in SCRIPTS.items() if name != "i18n.js")
    code += SCRIPTS["i18n.js"].split("const REMEMBERED")[1]
    named = set(re.findall(r'data-i18n(?:-\w+)?"?[=:] ?"([\w.-]+)"', code)) | set(re.findall(r'\bt\("([\w.-]+)"', code))
    assert named - keys == set()
    stems = tuple(re.findall(r"\bt\(`([\w.]+)\$\{", code))
    unused = {key for key in keys - named if not key.startswith(stems) and f'"{key}"' not in code}
    assert unused == set()


def test_sentences_for_every_stage_status_preset_and_kind_of_style():
    from typing import get_args

    from wan_s2v.plan import PRESETS
    from wan_s2v.styles import STYLES

    jobs = pytest.importorskip("wan_s2v.server.jobs", reason="the server's packages are not installed")
    schemas = pytest.importorskip("wan_s2v.server.schemas", reason="the server's packages are not installed")
    wanted = {f"status.{status}" for status in get_args(jobs.Status)}
    wanted |= {f"stage.{stage}" for stage in get_args(schemas.Progress.model_fields["stage"].annotation)}
    wanted |= {f"preset.{preset}" for preset in PRESETS} | {f"preset.{preset}.text" for preset in PRESETS}
    wanted |= {f"look.{style.kind}" for style in STYLES}
    assert wanted - set(_dictionaries()["en"]) == set()


def test_no_file_names_another_host_or_holds_inline_code():
    for path in WEB.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|(?:src|href)=\"//|@import|url\(", text), path.name
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=", PAGE)
    assert not re.search(r"innerHTML|\beval\(|new Function", "".join(SCRIPTS.values()))


def test_colours_are_legible():
    """WCAG 2.2 AA: 4.5:1 for text, 3:1 for the borders of controls."""
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", (WEB / "style.css").read_text()))

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    def contrast(one: str, other: str) -> float:
        dark, light = sorted((luminance(colours[one]), luminance(colours[other])))
        return (light + 0.05) / (dark + 0.05)

    for ground in ("ground", "stage", "panel", "raised"):
        assert min(contrast(name, ground) for name in ("text", "soft", "accent", "bad")) >= 4.5
        assert contrast("edge", ground) >= 3
    assert contrast("accent-ink", "accent") >= 4.5


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def address(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("fastapi", reason="the server's packages are not installed")
    with running_server(tmp_path_factory.mktemp("page")) as found:
        yield found


class Visit:
    """A visitor's tab, signed in; it notes what went wrong and which hosts were asked."""

    def __init__(self, browser: Any, address: str, **settings: Any) -> None:
        self.context = browser.new_context(**({"locale": "en-GB"} | settings))
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.hosts: set[str] = set()
        self.problems: list[str] = []
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url.removeprefix("blob:")).netloc))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", self._listen)
        self.page.goto(address)

    def _listen(self, message: Any) -> None:
        is_refusal = "Failed to load resource" in message.text and re.search(r"\b(401|422)\b", message.text)
        if message.type == "error" and not is_refusal:
            self.problems.append(f"{message.text} {message.location['url']}")

    def sign_in(self) -> None:
        self.page.fill("#token input", TOKEN)
        self.page.press("#token input", "Enter")
        self.page.wait_for_selector("#presets label")

    def compose(self, **fields: str) -> None:
        self.page.set_input_files("#image", DEMO / "portrait_1.png")
        self.page.set_input_files("#audio", DEMO / "voice_en.flac")
        self.page.select_option("#size", "exact")
        for selector, value in {"#width": str(SIDE), "#height": str(SIDE)}.items():
            self.page.fill(selector, value)
        self.page.click(".more summary")
        for name, value in {"num_inference_steps": str(STEPS), **fields}.items():
            self.page.fill(f"[name={name}], #{name}", value)
        self.page.wait_for_selector("#plan strong")

    def start(self) -> None:
        self.page.wait_for_selector("#start:enabled")
        self.until("!document.querySelector('#plan.stale')")
        self.page.click("#start")
        self.page.wait_for_selector("#watch:not([hidden])")

    def until(self, expression: str) -> None:
        """Wait for an expression to be true; Playwright's own way needs `eval`, which the page's policy forbids."""
        deadline = time.monotonic() + PATIENCE_MS / 1000
        while not self.page.evaluate(expression):
            assert time.monotonic() < deadline, f"never true: {expression}"
            self.page.wait_for_timeout(50)

    def painted(self, selector: str) -> bool:
        """Whether a canvas shows more than one colour."""
        return self.page.eval_on_selector(
            selector,
            """canvas => new Set(new Uint32Array(canvas.getContext("2d")
                .getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size > 1""",
        )


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Visit]:
    visit = Visit(browser, address)
    visit.sign_in()
    yield visit
    visit.context.close()
    assert visit.problems == []
    assert visit.hosts == {urlsplit(address).netloc}


def test_a_portrait_and_a_voice_become_a_video_that_plays(browser: Any, address: str):
    visit = Visit(browser, address)
    page = visit.page
    page.fill("#token input", "not the token of this server")
    page.press("#token input", "Enter")
    page.wait_for_selector("#token .error:not([hidden])")
    visit.sign_in()

    visit.compose(prompt="A woman tells a story", length=str(LENGTH_S))
    plan = page.inner_text("#plan")
    assert plan.startswith(f"{LENGTH_S} s · {SIDE} × {SIDE} · 2 clips\nabout ")
    assert page.inner_text("#picture .readout").startswith(f"{SIDE} × {SIDE}")
    assert page.locator(".cuts li").count() == 2
    assert visit.painted(".track canvas")

    page.fill("#height", "250")
    with pytest.raises(UsageError) as refused:
        plan_framing(512, 512, height=250, width=SIDE, multiple=16, min_side=64)
    page.wait_for_selector("#trouble:not([hidden])")
    assert page.inner_text("#trouble") == str(refused.value)
    assert page.is_disabled("#start")
    page.fill("#height", str(SIDE))

    visit.start()
    assert page.locator(".strip li").count() == 2
    page.wait_for_selector("#watch[data-status=running] .bar i")
    page.wait_for_selector("#watch[data-status=done]")
    _check_playing(visit)
    visit.until("document.querySelectorAll('.strip li.done canvas').length >= 2")
    _check_downloads(page)
    _check_history(visit)
    assert visit.problems == []
    assert visit.hosts == {urlsplit(address).netloc}


def _check_playing(visit: Visit) -> None:
    video = "document.querySelector('#watch video')"
    visit.page.evaluate(f"{video}.play()")
    visit.until(f"{video}.currentTime > 0.2")
    shown = visit.page.eval_on_selector(
        "#watch video", "video => [video.duration, video.videoWidth, video.videoHeight]"
    )
    assert shown == [pytest.approx(LENGTH_S, abs=1.5 / 24), SIDE, SIDE]


def _check_downloads(page: Any) -> None:
    with page.expect_download() as video:
        page.click(".download[data-kind=content]")
    with av.open(BytesIO(Path(video.value.path()).read_bytes())) as container:
        assert {stream.type for stream in container.streams} == {"video", "audio"}
    with page.expect_download() as sidecar:
        page.click(".download[data-kind=sidecar]")
    record = json.loads(Path(sidecar.value.path()).read_text(encoding="utf-8"))
    assert "seed" in json.dumps(record)


def _check_history(visit: Visit) -> None:
    """After a reload the shot is there, in Chinese if that was chosen; its settings can be used again; it can go."""
    page = visit.page
    page.click("[data-language=zh]")
    page.reload()
    page.wait_for_selector(".card[data-status=done] .poster canvas")
    assert page.get_attribute("html", "lang") == "zh-Hans"
    assert page.inner_text("#watch h1") == _dictionaries()["zh"]["status.done"]
    page.click(".again")
    assert page.input_value("[name=prompt]") == "A woman tells a story"
    assert page.input_value("[name=num_inference_steps]") == str(STEPS)
    page.click(".card a")
    page.click(".delete")
    page.click("#confirm .primary")
    page.wait_for_selector("#shots-empty:not([hidden])")


def test_a_recorded_voice_is_planned_and_a_started_shot_can_be_cancelled(visit: Visit):
    page = visit.page
    visit.compose(prompt="cancel this")
    page.check("[name=source][value=record]", force=True)
    page.click(".record")
    visit.until("/^0:0[2-9]/.test(document.querySelector('.record-text span').textContent)")
    assert visit.painted(".meter")
    page.click(".record")
    page.wait_for_selector(".file-name:has-text('Recording')")
    visit.until("/^[2-4]\\.\\d s/.test(document.querySelector('#plan').textContent)")
    visit.start()
    page.click(".cancel")
    page.wait_for_selector("#watch[data-status=cancelled]")
    assert page.locator(".card[data-status=cancelled]").count() == 1


def test_the_length_is_cut_by_keyboard_at_the_end_of_the_waveform(visit: Visit):
    page = visit.page
    visit.compose()
    page.focus(".trim")
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    assert float(page.input_value("#length")) == pytest.approx(4.0)
    visit.until("document.querySelector('#plan').textContent.startsWith('4.0 s')")


def test_a_phone_shows_everything_within_its_width(browser: Any, address: str):
    settings = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "locale": "zh-CN"}
    visit = Visit(browser, address, **settings)
    visit.sign_in()
    page = visit.page
    assert page.inner_text("#start") == _dictionaries()["zh"]["start"]
    for language in ("zh", "en"):
        page.click(f"[data-language={language}]")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.evaluate("document.querySelector('#start').getBoundingClientRect().bottom") <= 844
    assert visit.problems == []
    visit.context.close()
