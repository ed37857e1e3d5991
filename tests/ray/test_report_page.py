"""The HTML report of an output in a bucket, opened in Chromium, and the command ``show``."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from s3fs import S3FileSystem

from inpaint_encode.demo.pairs import upload, write_random_pairs
from inpaint_encode.job.pipeline import run_job
from inpaint_encode.job.progress import Display
from inpaint_encode.settings import ReportOptions
from inpaint_encode.stores import storage
from inpaint_encode.tools.inspect.page import render
from inpaint_encode.tools.inspect.page_data import collect_page_data
from inpaint_encode.tools.inspect.pictures import TITLES
from tests.conftest import save_vae

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
FLAGS += ["--disable-sync", "--no-first-run"]
PAIRS = 24

in_browser = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed")


@pytest.fixture(scope="module")
def output(s3, ray_cluster, make_job, tmp_path_factory):
    """The output of 24 pairs: one image is truncated and rejected, one is encoded and then deleted."""
    folder = tmp_path_factory.mktemp("photos")
    write_random_pairs(folder, PAIRS, seed=5, smallest=32, largest=96)
    cut = min((folder / "images").rglob("*.*"))
    cut.write_bytes(cut.read_bytes()[:-200])
    upload(folder, s3.uri("page"))
    uri = s3.uri("page-latents")
    run_job(make_job(s3.uri("page/images"), s3.uri("page/masks"), uri, chunk_rows=8, dtype="float32"), Display())
    gone = max((folder / "images").rglob("*.*"))
    S3FileSystem().rm(s3.uri("page", str(gone.relative_to(folder))).removeprefix("s3://"))
    return uri


@pytest.fixture(scope="module")
def data(output):
    return collect_page_data(output, ReportOptions(gallery=PAIRS), lambda _: None)


@pytest.fixture(scope="module")
def page(data, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(render(data))
    return file


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, page):
    """Return a function that opens the page and records its console messages and requests."""
    contexts = []

    def open_page(width: int = 1200, **options):
        context = chromium.new_context(viewport={"width": width, "height": 844}, **options)
        contexts.append(context)
        tab = context.new_page()
        tab.said, tab.asked = [], []
        tab.on("console", lambda message: tab.said.append(message.text))
        tab.on("pageerror", lambda error: tab.said.append(str(error)))
        tab.on("request", lambda request: tab.asked.append(request.url))
        tab.goto(page.as_uri())
        return tab

    yield open_page
    for context in contexts:
        context.close()


WITHOUT_PICTURE = "[...document.images].filter((one) => !one.naturalWidth).length"

CONTRASTS = """() => {
  const levels = (text) => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map((one) => one / 255)
    .map((one) => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4)
    .reduce((sum, one, at) => sum + one * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const color = levels(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] > 0.9) return color;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !node.checkVisibility()) continue;
    const style = getComputedStyle(node);
    const [one, other] = [luminance(levels(node.closest("svg") ? style.fill : style.color)), luminance(behind(node))];
    found.push([(Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05), walk.currentNode.data.trim()]);
  }
  return found;
}"""


@in_browser
class TestPage:
    def test_it_opens_without_an_error_or_a_request(self, opened, page):
        tab = opened()
        assert tab.said == []
        assert [url for url in tab.asked if not url.startswith("data:")] == [page.as_uri()]
        assert tab.title().startswith("inpaint-encode: s3://")

    def test_it_shows_every_picture(self, opened, data):
        tab = opened()
        assert tab.evaluate(WITHOUT_PICTURE) == 0
        shown = [len(card.pictures) for card in data.gallery.cards]
        assert tab.locator(".card img").count() == sum(shown) > 100
        assert tab.locator(".card").first.locator("figcaption").all_inner_texts() == list(TITLES)
        assert tab.locator("svg.chart").count() == 4

    def test_tables_sort(self, opened):
        tab = opened()
        table = tab.locator("table", has=tab.get_by_text("histogram"))
        head = table.locator("th", has_text="mean")
        means = table.locator("tbody td:nth-child(2)")
        for order, sign in (("ascending", 1), ("descending", -1)):
            head.get_by_role("button").click()
            assert head.get_attribute("aria-sort") == order
            values = [sign * float(text) for text in means.all_inner_texts()]
            assert values == sorted(values) and len(values) == 4
        table.locator("th", has_text="channel").get_by_role("button").click()
        assert table.locator("th[aria-sort]").count() == 1
        assert table.locator("tbody td:first-child").all_inner_texts() == ["0", "1", "2", "3"]

    def test_a_picture_opens_large_with_its_neighbours(self, opened):
        tab = opened()
        tab.get_by_role("button", name="Enlarge: image of").first.click()
        dialog = tab.locator("dialog[open]")
        small = tab.locator(".card img").first
        assert dialog.locator("img").bounding_box()["width"] > 3 * small.bounding_box()["width"]
        assert dialog.locator("p").inner_text().startswith("image of")
        tab.keyboard.press("ArrowRight")
        assert dialog.locator("p").inner_text().startswith("mask of")
        dialog.get_by_role("button", name="previous").click()
        assert dialog.locator("img").get_attribute("src") == small.get_attribute("src")
        tab.keyboard.press("Escape")
        assert tab.locator("dialog[open]").count() == 0 and tab.said == []

    def test_it_fits_a_phone(self, opened):
        tab = opened(390, device_scale_factor=2, is_mobile=True, has_touch=True)
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        wide = (
            "[...document.querySelectorAll('p, dl, h1, h2, h3, figure, .card')].filter((one) => one.scrollWidth > 390)"
        )
        assert tab.evaluate(f"{wide}.length") == 0
        assert tab.evaluate("parseFloat(getComputedStyle(document.querySelector('main p')).fontSize)") >= 16
        boxes = tab.locator(".card").first.locator("img")
        assert min(boxes.nth(at).bounding_box()["width"] for at in range(boxes.count())) > 90

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_all_text_has_enough_contrast(self, opened, scheme):
        tab = opened(color_scheme=scheme)
        found = tab.evaluate(CONTRASTS)
        assert len(found) > 200
        assert [(round(contrast, 1), text) for contrast, text in found if contrast < 4.5] == []
        paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (int(paper[4:].split(",")[0]) < 128) == (scheme == "dark")

    def test_it_is_complete_without_scripts(self, opened):
        tab = opened(java_script_enabled=False)
        assert tab.locator("th button").count() == 0
        assert tab.locator("table").count() >= 8 and tab.locator(".card img").count() > 100


class TestGallery:
    def test_the_psnr_is_that_of_the_vae(self, data, vae_folder):
        from diffusers import AutoencoderKL

        vae = AutoencoderKL.from_pretrained(vae_folder)
        rows = {row["key"]: row for file in data.output.files for row in _rows(data.output, file)}
        checked = 0
        for card in (card for card in data.gallery.cards if card.psnr is not None):
            row = rows[card.row["key"]]
            file = Image.open(io.BytesIO(storage.read(row["image_uri"]).data))
            if "icc_profile" in file.info:
                continue  # its colors are converted
            with torch.no_grad():
                image = vae.decode(torch.from_numpy(row["samples"].copy())[None]).sample[0].permute(1, 2, 0).numpy()
            levels = np.rint((image / 2 + 0.5).clip(0, 1) * 255)
            source = np.asarray(file.convert("RGB"), float)
            top, left = row["crop_top"], row["crop_left"]
            kept = row["noise_mask"][0] == 0
            error = (levels - source[top : top + levels.shape[0], left : left + levels.shape[1]])[kept]
            assert card.psnr == pytest.approx(10 * np.log10(255**2 / np.mean(error**2)), abs=0.05)
            checked += 1
        assert checked > 8

    def test_it_shows_the_extreme_rows(self, data):
        cards = data.gallery.cards
        coverage = sorted(data.columns.coverage.tolist())
        small = sorted(card.row["mask_coverage"] for card in cards if "small" in card.reasons)
        assert small == coverage[: len(small)] and len(small) == PAIRS // 2
        large = sorted(card.row["mask_coverage"] for card in cards if "large" in card.reasons)
        assert large == coverage[-len(large) :]
        worst = sorted(card.psnr for card in cards if "worst" in card.reasons)
        assert worst == sorted(data.gallery.psnrs)[: len(worst)] and len(worst) == PAIRS // 2

    def test_a_row_without_its_source_has_no_image(self, data):
        cards = [card for card in data.gallery.cards if card.missing]
        assert [card.missing for card in cards] == [
            ["its image or mask was deleted or has changed since it was encoded"]
        ]
        assert [picture.title for picture in cards[0].pictures] == ["grown mask", "latent", "decoded"]


def _rows(output, file):
    from inpaint_encode.reader import as_rows

    return as_rows(output.read(file).read())


class TestCommands:
    def test_report_writes_the_page_to_a_bucket(self, output, s3, shell):
        uri = s3.uri("pages/report.html")
        done = shell("report", output, "--html", uri, "--gallery", 2, "--no-decode")
        assert done.returncode == 0, done.stderr
        html = storage.read(uri).data
        assert f"{uri}: {len(html):,} bytes" in done.stdout
        assert "rejected pairs by reason" in done.stdout and b"No latent is decoded: --no-decode was given." in html
        assert shell("report", output, "--html", "ftp://host/x.html").returncode == 2

    def test_report_with_another_vae_decodes_nothing(self, output, shell, tmp_path):
        other = save_vae(tmp_path / "other", levels=4, seed=1)
        done = shell("report", output, "--html", tmp_path / "r.html", "--gallery", 2, "--vae", other)
        assert done.returncode == 0, done.stderr
        assert "No latent is decoded: --vae" in (tmp_path / "r.html").read_text()

    def test_show_prints_a_row(self, output, data, shell, tmp_path):
        card = next(card for card in data.gallery.cards if card.psnr is not None)
        key = card.row["key"]
        done = shell("show", output, key, "--picture", tmp_path / "row.png")
        assert done.returncode == 0, done.stderr
        lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
        assert f"key {key}" in lines
        assert f"PSNR {card.psnr:.1f} dB, decoded image against the source, outside noise_mask" in lines
        assert any(line.startswith("samples float32, 4 x") for line in lines)
        assert f"picture: {tmp_path / 'row.png'}" in lines
        with Image.open(tmp_path / "row.png") as picture:
            assert picture.width > 1300 and picture.height > 500

    def test_show_prints_a_row_without_its_source(self, output, data, shell, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (card,) = (card for card in data.gallery.cards if card.missing)
        key = card.row["key"]
        done = shell("show", output, key, "--no-decode")
        assert done.returncode == 0, done.stderr
        assert "missing: its image or mask was deleted" in done.stdout and "not decoded: --no-decode" in done.stdout
        assert (tmp_path / f"{key.replace('/', '-')}.png").exists()

    def test_show_refuses_an_unknown_key(self, output, shell, tmp_path):
        done = shell("show", output, "000/00000")
        assert (done.returncode, "has no row '000/00000'; similar keys: '000/00000" in done.stderr) == (2, True)
        done = shell("show", output, "000/000000")
        assert (done.returncode, "it was rejected (image." in done.stderr) == (2, True)
        done = shell("show", output, "000/000001", "--picture", tmp_path / "row.jpg")
        assert (done.returncode, "must end in .png" in done.stderr) == (2, True)
