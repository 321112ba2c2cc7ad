"""Takes the pictures of docs/gallery.md: the service's pages in a headless Chromium.

python docs/images/gallery_pages.py [--models=OLD,NEW]   (needs chromium and chromedriver)
"""

import argparse
import io
import pathlib
import sys
import tempfile
import time

from PIL import Image

from iamcl2r_jax.programs import demo, start

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))
import browser  # noqa: E402


def shoot(chrome, name, address, width, scheme, prepare=lambda: None):
    """Saves the whole page as NAME.png, with 128 colours."""
    browser.open_page(chrome, address, width, scheme)
    prepare()
    time.sleep(2)
    height = chrome.execute_script("return document.documentElement.scrollHeight")
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    time.sleep(0.5)
    picture = Image.open(io.BytesIO(chrome.get_screenshot_as_png()))
    picture.convert("RGB").quantize(128).save(HERE / f"{name}.png", optimize=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models")
    parser.add_argument("--dataset", default="glyphs/digits")
    parser.add_argument("--data-dir")
    options = parser.parse_args()
    models = options.models.split(",") if options.models else demo.external_models()
    start.prepare_jax()
    with tempfile.TemporaryDirectory() as place:
        folder, gallery = f"{place}/images", f"{place}/gallery"
        demo.write_images(folder, options)
        demo.index_images(gallery, folder, models[0])
        with (
            demo.Service(gallery, folder) as service,
            browser.started(f"{place}/browser") as chrome,
        ):
            photograph(service, chrome, folder, models[1])


def photograph(service, chrome, folder, checkpoint):
    """Brings the gallery half through a backfill and takes all pictures on the way."""
    sets = {"model": checkpoint, "name": "second", "gallery": f"folder:{folder}"}
    service.order("gate", **sets, accept_incompatible=True)
    demo.ordered(service, "canary", share=0.25)
    demo.ordered(service, "promote")
    demo.ordered(service, "backfill", rate=3, batch=3)
    query = min(pathlib.Path(folder, "query", "3").iterdir())

    def wait_for(done):
        while (service.status()["upgrade"]["backfill"] or {"done": 0})["done"] < done:
            time.sleep(0.2)

    def search():
        chrome.find_element("id", "file").send_keys(str(query))

    search_page, upgrade_page = f"{service.address}/", f"{service.address}/upgrade"
    wait_for(20)
    shoot(chrome, "gallery-search-laptop", search_page, 1280, "light", search)
    shoot(chrome, "gallery-search-phone", search_page, 390, "light", search)
    wait_for(100)
    shoot(chrome, "gallery-upgrade-laptop", upgrade_page, 1280, "light")
    shoot(chrome, "gallery-upgrade-phone-dark", upgrade_page, 390, "dark")


if __name__ == "__main__":
    main()
