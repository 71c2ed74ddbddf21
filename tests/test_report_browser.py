"""A report in Chromium: it is drawn, sorted, searched and filtered, without an error.

Left out where playwright, Plotly or a Chromium is not installed.
"""

import pytest
from report_sets import IDS, ground_truth, results, written

from balms_det.report import Options, gather, run_files, write_page
from lab.browser import chromium, opened_page, scroll_through

pytest.importorskip("playwright")
pytest.importorskip("plotly")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(chromium() is None, reason="there is no Chromium"),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    content = ground_truth()
    annotations, first = written(folder, content, results(content))
    _, second = written(folder, content, results(content, seed=1), "other")
    data = gather(annotations, [run_files(first), run_files(second)], Options(bootstrap=2))
    write_page(data, folder / "report.html")
    return folder / "report.html"


def shown(page, column):
    """Return the texts of a column in the rows of classes that are shown."""
    return page.eval_on_selector_all(
        "#class-table tbody tr:not([hidden])",
        f"rows => rows.map(row => row.cells[{column}].textContent)",
    )


@pytest.mark.parametrize("screen", ["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_figure_is_drawn_without_an_error_and_nothing_is_wider_than_the_screen(
    report, screen, scheme
):
    with opened_page(report, screen, scheme) as (page, faults):
        scroll_through(page)
        figures = page.query_selector_all(".figure")
        assert len(figures) >= 7
        for figure in figures:
            outer, inner = figure.bounding_box(), figure.query_selector(".main-svg").bounding_box()
            assert abs(outer["height"] - inner["height"]) < 2
            assert inner["width"] <= page.viewport_size["width"]
        widest = page.evaluate("document.documentElement.scrollWidth")
        assert widest <= page.viewport_size["width"]
        assert faults == []


def test_the_page_takes_the_colours_of_the_system(report):
    seen = {}
    for scheme in ("light", "dark"):
        with opened_page(report, scheme=scheme) as (page, _):
            page.wait_for_selector("#figure-headline .main-svg")
            background = "getComputedStyle(document.body).backgroundColor"
            text = "getComputedStyle(document.querySelector('#figure-headline .xtick text')).fill"
            seen[scheme] = page.evaluate(background), page.evaluate(text)
            if scheme == "light":
                page.emulate_media(color_scheme="dark")
                page.wait_for_timeout(300)
                after = page.evaluate(background), page.evaluate(text)
    assert seen["light"][0] != seen["dark"][0] and seen["light"][1] != seen["dark"][1]
    assert after == seen["dark"]


def test_classes_are_sorted_by_each_column_in_both_directions(report):
    with opened_page(report) as (page, faults):
        buttons = page.query_selector_all("#class-table th button")
        for column, button in enumerate(buttons):
            button.click()
            upwards = shown(page, column)
            button.click()
            downwards = shown(page, column)
            known = [text for text in upwards if text != "–"]
            key = str if column < 2 else float
            assert known == sorted(known, key=key)
            assert [text for text in downwards if text != "–"] == sorted(
                known, key=key, reverse=True
            )
            # What has no value comes last.
            for texts in (upwards, downwards):
                assert "–" not in texts[: len(known)]
        assert faults == []


def test_classes_are_searched_and_filtered_by_group(report):
    with opened_page(report) as (page, faults):
        assert len(shown(page, 0)) == len(IDS)
        page.fill("#class-search", "CLASS <1")
        assert shown(page, 0) == [f"class <{i}> & </script>" for i in range(10, 15)]
        page.uncheck(".group[value=f]")
        assert shown(page, 1) == ["common"] * 1
        page.fill("#class-search", "")
        assert sorted(set(shown(page, 1))) == ["common", "rare"]
        assert page.text_content("#class-count") == f"8 of {len(IDS)} classes"
        assert faults == []


def test_a_point_names_its_class(report):
    with opened_page(report) as (page, faults):
        page.wait_for_selector("#figure-by-count .main-svg")
        page.query_selector("#figure-by-count").scroll_into_view_if_needed()
        point = page.query_selector("#figure-by-count .point")
        point.hover(force=True)
        page.wait_for_selector("#figure-by-count .hovertext")
        text = page.text_content("#figure-by-count .hovertext")
        assert "class <" in text and "training images: " in text and "AP: " in text
        assert faults == []
