// The portrait: chosen or dropped, shown large, with the part of it that the frame will hold.

import { $, acceptDrops, onFile, say } from "./dom.js";
import { t } from "./i18n.js";

export class Picture {
  /** @param onChange called when another picture, or none, is chosen. */
  constructor(root, onChange) {
    this.root = root;
    this.onChange = onChange;
    this.file = null;
    this.framing = null;
    this.image = $("img", root);
    onFile($("input", root), (file) => this.choose(file));
    $(".clear", root).addEventListener("click", () => $("input", root).click());
    acceptDrops(root, (files) => this.choose(files.find(isPicture) || files[0]));
    this.image.addEventListener("load", () => this.#draw());
    this.image.addEventListener("error", () => this.#draw());
    new ResizeObserver(() => this.#draw()).observe(root);
  }

  choose(file) {
    if (!file) return;
    this.file = file;
    this.framing = null;
    URL.revokeObjectURL(this.image.src);
    this.image.src = URL.createObjectURL(file);
    this.image.alt = t("portrait.alt");
    this.#draw();
    this.onChange();
  }

  /** Shows how the picture goes into the frame: {width, height, fit, exact} or null while that is not known. */
  frameAs(framing) {
    this.framing = framing;
    this.#draw();
  }

  #draw() {
    const { root, image, framing } = this;
    const isShown = this.file !== null;
    $(".drop", root).classList.toggle("covered", isShown);
    $(".clear", root).hidden = !isShown;
    $(".frame", root).hidden = !isShown || !image.naturalWidth;
    if (isShown && image.complete && !image.naturalWidth) {
      say($(".readout", root), t("portrait.unreadable", { name: this.file.name }));
      return;
    }
    const view = isShown && framing && image.naturalWidth ? geometry(image, framing) : null;
    this.#place(view);
    say($(".readout", root), view && `${framing.width} × ${framing.height}   ${view.text}`);
  }

  /** Gives the picture all the room there is, and the crop its part of the picture. */
  #place(view) {
    const { root, image } = this;
    const frame = $(".frame", root);
    const aspect = view?.isPadded ? view.frameAspect : image.naturalWidth / image.naturalHeight || 1;
    const [width, height] = [root.clientWidth, root.clientHeight];
    frame.style.width = `${Math.min(width, height * aspect)}px`;
    frame.style.height = `${Math.min(height, width / aspect)}px`;
    frame.classList.toggle("framed", view !== null);
    const crop = $(".crop", root);
    crop.style.width = `${100 * (view?.isPadded ? 1 : view?.across ?? 1)}%`;
    crop.style.height = `${100 * (view?.isPadded ? 1 : view?.down ?? 1)}%`;
  }
}

export const isPicture = (file) => file.type.startsWith("image/");

/** Which share of the picture's sides a frame shows, cut at the centre; as plan_framing in image.py decides it. */
function geometry(image, { width, height, fit, exact }) {
  const [across, down] = [width / image.naturalWidth, height / image.naturalHeight];
  const isPadded = fit === "pad";
  const official = Math.min(width, height) / Math.min(image.naturalWidth, image.naturalHeight);
  const scale = isPadded ? Math.min(across, down) : exact ? Math.max(across, down) : official;
  const shares = { across: Math.min(1, across / scale), down: Math.min(1, down / scale) };
  const seen = isPadded ? (scale / across) * (scale / down) : shares.across * shares.down;
  const share = Math.round(100 * (1 - seen));
  const text = share < 1 ? t("readout.whole") : t(isPadded ? "readout.pad" : "readout.crop", { share });
  return { ...shares, isPadded, frameAspect: width / height, text };
}
