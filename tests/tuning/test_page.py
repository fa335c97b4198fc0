"""The report: its answer, its charts, and that a real browser shows it without a network."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tuning_kit import ROOMY, bad, record, world

from resilient_imagen import Settings
from resilient_imagen.tuning import Recording, Sweep, sweep, waves
from resilient_imagen.tuning.chart_axes import numbers, times
from resilient_imagen.tuning.charts import binned, blocked_periods, trade_off
from resilient_imagen.tuning.fidelity import Deviation, Fidelity, Hint
from resilient_imagen.tuning.outcome_model import fails
from resilient_imagen.tuning.recommendation import Contribution, Objective
from resilient_imagen.tuning.replay import replay
from resilient_imagen.tuning.report_html import page
from resilient_imagen.tuning.rows import Attempted, Row
from resilient_imagen.tuning.settings_in_effect import SettingsInEffect, SettingsSource

pytestmark = pytest.mark.ci  # sweeps, and a browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
LARGEST = 500_000

Tuned = tuple[Sweep, SettingsInEffect]


def used(
    recording: Recording, settings: Settings, source: SettingsSource = "recording", *notes: str
) -> SettingsInEffect:
    """Return settings that are replayed with the whole recording."""
    return SettingsInEffect(settings, recording, source, notes)


@pytest.fixture(scope="module")
def tuned() -> Tuned:
    """A small sweep over a recording with outages, which recommends another setting."""
    settings = Settings(**ROOMY, breaker_reset_timeout=400)
    often = world(*waves(bad(0.2, 4), every=1200, times=8), hours=3, per_minute=4)
    recording = record(often, settings)
    return sweep(recording, settings, count=8, workers=1), used(recording, settings)


@pytest.fixture(scope="module")
def short() -> Tuned:
    """A sweep over twenty minutes with one outage."""
    settings = Settings(**ROOMY)
    recording = record(world(bad(0.1, 4), hours=0.34, per_minute=10), settings)
    return sweep(recording, settings, count=2, workers=1), used(recording, settings)


@pytest.fixture(scope="module")
def refused() -> Tuned:
    """A sweep with other settings than those of the recording."""
    settings = Settings(**ROOMY)
    recording = record(world(bad(0.1, 4), hours=0.34), settings)
    other = Settings(ipm=3, max_concurrent=2)
    recording = replace(recording, settings=[])
    return sweep(recording, other, count=2, workers=1), used(recording, other, "environment")


@pytest.fixture(scope="module")
def long() -> Tuned:
    """A sweep over two weeks with an outage every second day."""
    settings = Settings(**ROOMY)
    scenario = world(
        *waves(bad(6, 60), every=48 * 3600, times=7), hours=336, per_minute=0.05, swing=0.6
    )
    recording = record(scenario, settings)
    return sweep(recording, settings, count=2, workers=1), used(recording, settings)


@pytest.fixture(scope="module")
def differing(tuned: Tuned) -> Tuned:
    """A sweep with another setting for each objective."""
    found, _ = tuned
    (advice, *_) = found.recommended.values()
    others = [each for each in found.trials if each.knobs != found.today.knobs]
    advised = {
        objective: replace(
            advice,
            objective=objective,
            trial=trial,
            contributions=tuple(
                Contribution(variable, trial.knobs.variables()[variable], gain=0.1)
                for variable in (
                    line.split("=")[0] for line in trial.knobs.env_lines(found.today.knobs)
                )
            ),
        )
        for objective, trial in zip(Objective, others, strict=False)
    }
    return replace(found, advice=advised), tuned[1]


@pytest.fixture(params=["tuned", "differing", "short", "refused", "long"])
def each(request: pytest.FixtureRequest) -> Tuned:
    """Each kind of recording and verdict."""
    found: Tuned = request.getfixturevalue(request.param)
    return found


def visible(text: str) -> str:
    """Return the page's words, without its style and tags."""
    text = re.sub(r"<style>.*?</style>|<svg.*?</svg>", "", text, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


def first_sentence(found: Tuned) -> str:
    """Return the heading of the page."""
    (heading,) = re.findall(r"<h1>(.*?)</h1>", page(*found))
    return html.unescape(heading)


# -- the answer -----------------------------------------------------------------------------------


def test_the_first_sentence_says_what_changes_and_its_price(tuned: Tuned) -> None:
    """It has the number of lines, the time gained and the additional wasted requests."""
    found = tuned[0]
    (knobs,) = {advice.trial.knobs for advice in found.recommended.values()}
    assert len(knobs.env_lines(found.today.knobs)) == 2
    assert re.match(
        r"Two lines bring you back to Google \w+ minutes sooner .*, for .*more wasted requests\.",
        first_sentence(tuned),
    )
    assert 'class="verdict change"' in page(*tuned)


def test_the_lines_to_paste_come_right_after_the_verdict(tuned: Tuned) -> None:
    """Each line is there with its present value and its part in the improvement."""
    found, text = tuned[0], page(*tuned)
    advice = next(iter(found.recommended.values()))
    lines = advice.trial.knobs.env_lines(found.today.knobs)
    assert re.findall(r"<pre>(.*?)</pre>", text, re.DOTALL)[0] == "\n".join(lines)
    assert text.index("<h1>") < text.index(lines[0]) < text.index("Recorded and replayed")
    words = visible(text)
    for part in advice.contributions:
        now = found.today.knobs.variables()[part.variable]
        assert f"{part.variable}={part.value} {now}" in words


def test_without_a_better_setting_the_page_says_to_keep_them(short: Tuned) -> None:
    """There are no lines to paste, and the recorded time is drawn alone."""
    text = page(*short)
    assert first_sentence(short).startswith("Keep your settings")
    assert 'class="verdict keep"' in text
    assert "<pre>" not in text
    assert re.findall("<figcaption>(.*?)</figcaption>", text)[0] == "What was recorded"
    assert "With the recommended settings" not in text


def test_an_interrupted_search_says_so_first(short: Tuned, tuned: Tuned) -> None:
    """The number of settings tried comes before what was found, and nothing says to keep them."""
    found = replace(short[0], trials=short[0].trials[:2], wanted=200, interrupted=True)
    text = page(found, short[1])
    assert first_sentence((found, short[1])) == (
        "Stopped after 2 of 200 settings; none of them is better."
    )
    assert "Nothing to do" not in text
    better = replace(tuned[0], wanted=len(tuned[0].trials) + 50, interrupted=True)
    count = len(better.trials)
    assert first_sentence((better, tuned[1])) == (
        f"Stopped after {count} of {count + 50} settings. {first_sentence(tuned)}"
    )


def test_objectives_that_differ_are_a_choice(differing: Tuned) -> None:
    """Each objective has its sentence, its lines and its timeline."""
    found, text = differing[0], page(*differing)
    assert "depends on your aim" in first_sentence(differing)
    pasted = re.findall(r"<pre>(.*?)</pre>", text, re.DOTALL)
    for objective, advice in found.advice.items():
        assert "\n".join(advice.trial.knobs.env_lines(found.today.knobs)) in pasted
        assert re.search(rf"<h3>{str(objective).capitalize()}: \w+ lines? .+, .+\.</h3>", text)
        assert f"With the settings for {objective}" in text


def test_limits_that_make_calls_wait_are_mentioned(tuned: Tuned) -> None:
    """A limit of the pace is no recommendation, but the page mentions it."""
    limit = Contribution("IMAGE_GEN_IPM", "40", 0.3)
    text = page(replace(tuned[0], limits=(limit,)), tuned[1])
    assert "with IMAGE_GEN_IPM=40 alone they would take 30% less time" in visible(text)


def test_a_replay_that_does_not_match_comes_first(refused: Tuned) -> None:
    """The page refuses, gives options that would explain it, and draws both runs."""
    text = page(*refused)
    assert first_sentence(refused).startswith("No advice yet: a replay of your settings")
    assert text.index("What to do") < text.index("Recorded and replayed") < text.index("Over time")
    (command,) = re.findall("<pre>(.*?)</pre>", text, re.DOTALL)
    options = re.findall(r"--set (\w+)=(\w+)", command)
    assert {name for name, _ in options} == {hint.variable for hint in refused[0].fidelity.hints}
    assert len(options) == len(dict(options)) > 1
    assert re.search(r"more than [\d.]+%? away", text)
    assert "--env-file FILE" in text
    assert "The replayed settings" in text
    assert "What is traded" not in text


def test_too_little_evidence_is_the_verdict() -> None:
    """A recording without an outage leads to no recommendation, and the page says why."""
    settings = Settings(**ROOMY)
    recording = record(world(hours=0.4), settings)
    found = sweep(recording, settings, count=2, workers=1), used(recording, settings)
    assert "never failed for long" in first_sentence(found)
    assert 'class="verdict stop"' in page(*found)


def test_every_column_of_the_table_is_explained(each: Tuned) -> None:
    """Columns start with recorded and replayed, and each has a sentence."""
    text = page(*each)
    table = text[text.index("Recorded and replayed") :]
    columns = re.findall("<th>([a-z ]+)</th>", table)
    assert columns[:2] == ["recorded", "replayed"]
    for name in columns:
        assert re.search(f"<dt>{name}</dt><dd>.+?</dd>", table)
    assert re.search(r"<small>[\d.]+ to [\d.]+</small>", table)


def test_the_page_shows_what_is_left_out() -> None:
    """The page lists a breaker that is off, and a provider that is forced open."""
    today = Settings(**ROOMY, breaker_mode="off", breaker_fail_max=2, force_open="openai")
    recording = record(world(bad(0.1, 5), hours=0.4), Settings(**ROOMY))
    text = html.unescape(page(sweep(recording, today, count=4, workers=1), used(recording, today)))
    assert "IMAGE_GEN_BREAKER_MODE is off: the recording is replayed so" in text
    assert "IMAGE_GEN_FORCE_OPEN (openai) is left out" in text


def test_the_page_shows_notes_about_the_settings(short: Tuned) -> None:
    """Sentences about calls and settings that are left out are on the page, as on the terminal."""
    note = "2 calls are left out: <more> than a day lies between them and all others."
    found, before = short
    assert html.escape(note) in page(found, replace(before, notes=(note,)))


@pytest.mark.parametrize(
    ("source", "advice"),
    [
        ("recording", "The settings are those of the recording."),
        ("file", "The settings are those of --env-file."),
        ("environment", "those of this shell were replayed"),
    ],
)
def test_a_refusal_names_the_source_of_the_settings(
    refused: Tuned, source: SettingsSource, advice: str
) -> None:
    """The reader learns whether to look for a wrong variable in the recording, a file or here."""
    found, before = refused
    assert advice in visible(page(found, replace(before, source=source)))


def test_nothing_in_a_recording_can_end_the_page() -> None:
    """A route's name with markup is shown as text, and the command to paste quotes it."""
    evil = "google:</script><script>alert(1)</script>"
    rows: list[Row] = [Attempted(1e9 + at, str(at), evil, 5.0) for at in range(0, 600, 10)]
    from resilient_imagen.settings import RouteName
    from resilient_imagen.tuning.gather import gather

    settings = Settings().model_copy(update={"routes": (RouteName(evil),)})
    recording = gather(rows)
    found = sweep(recording, settings, count=2, workers=1)
    assert "<script" not in page(found, used(recording, settings))
    hint = Hint("IMAGE_GEN_ROUTES", f"{evil};$(reboot)", "they were recorded")
    fidelity = Fidelity((Deviation("mean_s", 5.0, 9.0, 2.0),), (hint,))
    text = page(replace(found, fidelity=fidelity), used(recording, settings))
    assert "<script" not in text
    assert f"--set 'IMAGE_GEN_ROUTES={evil};$(reboot)'" in html.unescape(text)


# -- charts ---------------------------------------------------------------------------------------


def test_the_bars_add_up(tuned: Tuned) -> None:
    """Bars have every image and every wasted request; blocked periods do not overlap."""
    recording, settings = tuned[1].recording, tuned[1].settings
    played, _ = replay(recording, settings)
    bins = binned(played, 60.0)
    assert sum(sum(one.images) for one in bins.values()) == sum(s >= 0 for s in played.served)
    assert sum(one.images[0] for one in bins.values()) == played.served.count(0)
    assert sum(one.wasted for one in bins.values()) == sum(fails(s.reason) for s in played.sent)
    assert all(one.median_s <= one.slow_s for one in bins.values())
    periods = blocked_periods(played, recording.duration)
    assert len(periods) >= 8
    assert all(a[1] <= b[0] for a, b in pairwise(periods))


def test_rejections_near_each_other_are_one_blocked_period(tuned: Tuned) -> None:
    """A recorded run has no changes of its breaker; calls that it rejected show them."""
    empty = replace(replay(tuned[1].recording, tuned[1].settings)[0], changes=[])
    assert blocked_periods(empty, 900.0, [10.0, 50.0, 100.0, 400.0]) == [(10, 100), (400, 400)]


def test_trade_offs_are_scaled_to_those_between_which_to_decide(tuned: Tuned) -> None:
    """A setting that is far worse does not stretch the chart; it is counted."""
    found = tuned[0]
    named = {"your settings": found.today}
    far = replace(
        found.today, whole=replace(found.today.whole, wasted_requests=10**6, mean_s=900.0)
    )
    before = trade_off(found, named, "Google")
    after = trade_off(replace(found, trials=(*found.trials, far)), named, "Google")

    def axes(text: str) -> list[str]:
        return re.findall(r'<i class="[xy]"[^>]*>[^<]*</i>', text)

    assert axes(after) == axes(before)
    assert f" of {len(found.trials) + 1}" in after
    assert after.count("<title>") == before.count("<title>") > 0


@pytest.mark.parametrize(
    ("seconds", "labels"),
    [
        (1200.0, ["22:00", "22:05", "22:10", "22:15", "22:20"]),
        (9 * 3600.0, ["22:00", "9 Nov", "02:00", "04:00", "06:00"]),
        (14 * 86400.0, ["11 Nov", "14 Nov", "17 Nov", "20 Nov"]),
    ],
)
def test_ticks_of_time_are_round(seconds: float, labels: list[str]) -> None:
    """Twenty minutes, some hours and two weeks have a few ticks at round times."""
    evening = 1_762_639_200.0  # 8 November 2025, 22:00 UTC
    assert [label for _, label in times(evening, seconds).ticks] == labels


def test_ticks_of_numbers_are_round_and_differ() -> None:
    """Small ranges have enough decimals."""
    assert [label for _, label in numbers(0, 30, 5).ticks] == ["0", "10", "20", "30"]
    assert [label for _, label in numbers(0.1351, 0.1389, 5).ticks] == ["0.136", "0.137", "0.138"]
    assert len(numbers(3.0, 3.0, 5).ticks) > 0


# -- the browser ----------------------------------------------------------------------------------


def test_the_page_needs_no_network_and_is_small(each: Tuned) -> None:
    """No address is loaded by it: no script, style, image, font or frame from elsewhere."""
    text = page(*each)
    assert not re.search(r"(src|href)=(?!\"data:)|url\(|@import|<script|<iframe", text)
    assert text.count("<html") == 1
    assert len(text.encode()) < LARGEST


INSPECT = """
const page = document.createElement("iframe");
page.style = "border:0;height:2000px;width:WIDTHpx";
page.onload = () => {
  const inside = page.contentDocument, root = inside.documentElement;
  const box = (each) => each.getBoundingClientRect();
  const words = [...inside.querySelectorAll("body *")].filter((each) =>
    [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim()) &&
    !each.closest("svg") && box(each).width > 0);
  const overlapping = [];
  const blocks = words.filter((each) => !words.some((other) => other !== each &&
    other.contains(each)));
  blocks.forEach((one, index) => blocks.slice(index + 1).forEach((other) => {
    const a = box(one), b = box(other);
    if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 &&
        b.top < a.bottom - 1)
      overlapping.push(one.textContent + " | " + other.textContent);
  }));
  const drawn = [...inside.querySelectorAll("svg path")];
  document.body.replaceChildren(Object.assign(document.createElement("pre"), {
    textContent: JSON.stringify({
      scrolls: root.scrollWidth > root.clientWidth,
      outside: words.filter((each) => box(each).left < 0 || box(each).right > WIDTH)
        .map((each) => each.textContent),
      overlapping,
      small: words.filter((each) => parseFloat(page.contentWindow.getComputedStyle(each).fontSize)
        < 12).map((each) => each.textContent),
      plots: [...inside.querySelectorAll(".plot")].map((each) => box(each).width),
      empty: drawn.filter((each) => each.classList.contains("first") && !each.closest("ul") &&
        box(each).height === 0).length,
      paths: drawn.length,
      background: page.contentWindow.getComputedStyle(inside.body).backgroundColor,
    })}));
};
page.srcdoc = PAGE;
document.body.append(page);
"""


def shown(text: str, width: int, folder: Path, *options: str) -> dict[str, Any]:
    """Return the layout of a page in Chromium without a network, which must log no error."""
    code = INSPECT.replace("WIDTH", str(width)).replace(
        "PAGE", json.dumps(text).replace("<", "\\u003c")
    )
    wrapper = folder / "wrapper.html"
    wrapper.write_text(f"<!doctype html><meta charset=utf-8><body><script>{code}</script>", "utf-8")
    done = subprocess.run(
        [
            str(CHROMIUM), *QUIET, f"--user-data-dir={folder / 'profile'}",
            "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--v=0",
            "--window-size=1400,2100", "--virtual-time-budget=20000", *options, "--dump-dom",
            wrapper.as_uri(),
        ],
        capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    (found,) = re.findall("<pre>(.*?)</pre>", done.stdout, re.DOTALL)
    layout: dict[str, Any] = json.loads(html.unescape(found))
    return layout


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH (apt-get install chromium)")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_real_browser_shows_it(each: Tuned, width: int, tmp_path: Path) -> None:
    """On a desktop and a phone nothing scrolls sideways, overlaps, or is too small to read."""
    found = shown(page(*each), width, tmp_path)
    assert not found["scrolls"]
    assert found["outside"] == []
    assert found["overlapping"] == []
    assert found["small"] == []
    assert len(found["plots"]) >= 3
    assert min(found["plots"]) > 0.3 * width
    assert found["paths"] >= 8
    assert found["empty"] == 0


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH (apt-get install chromium)")
def test_the_page_is_dark_where_the_system_is(short: Tuned, tmp_path: Path) -> None:
    """The colours follow the system's preference."""
    text = page(*short)
    light = shown(text, 1280, tmp_path)["background"]
    dark = shown(text, 1280, tmp_path, "--blink-settings=preferredColorScheme=0")["background"]
    assert light == "rgb(255, 255, 255)"
    assert dark == "rgb(20, 23, 28)"
