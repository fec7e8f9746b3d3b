// What may be chosen besides picture and voice, as fields with the pipeline's keyword names.

import { $, $$, make } from "./dom.js";
import { currentLanguage, t } from "./i18n.js";

const SHAPES = { picture: null, "16:9": 16 / 9, "4:3": 4 / 3, "1:1": 1, "3:4": 3 / 4, "9:16": 9 / 16 };
const KNOWN_SIZES = { "720p": 1280 * 720, "480p": 832 * 480, "360p": 640 * 368 };

export class Options {
  /** @param onChange called when any of them changes. */
  constructor(form, onChange) {
    this.form = form;
    this.defaults = {};
    this.styles = [];
    this.#makeShapes();
    $(".panel", form).addEventListener("input", () => {
      $("#exact").hidden = $("#size").value !== "exact";
      for (const radio of $$("#shapes input")) radio.disabled = $("#size").value === "exact";
      onChange();
    });
  }

  /** Offers what the server's model and styles allow. */
  offer(model, styles) {
    this.defaults = model.defaults;
    this.presets = model.presets;
    this.styles = styles;
    for (const name of ["fps", "num_inference_steps", "guidance_scale"]) {
      $(`[name=${name}]`, this.form).placeholder = this.defaults[name] ?? "";
    }
    for (const side of ["width", "height"]) {
      $(`#${side}`).step = this.defaults.size_multiple;
      $(`#${side}`).min = 4 * this.defaults.size_multiple;
    }
    this.translate();
  }

  /** Writes the choices' names in the current language and keeps what is chosen. */
  translate() {
    const chosen = this.read();
    this.#makeLooks();
    this.#makeSizes();
    this.#makePresets();
    this.write(chosen);
  }

  get fps() {
    return Number($("[name=fps]", this.form).value) || this.defaults.fps || 24;
  }

  /** Whether both sides are given; the server's crop is then another one. */
  get isExact() {
    return this.#sides() !== null;
  }

  get fit() {
    return $("[name=fit]", this.form).value;
  }

  appendTo(form) {
    for (const field of $$("[name]:not([name=source]):not([name=shape])", $(".panel", this.form))) {
      const isChosen = field.type !== "radio" || field.checked;
      if (isChosen && field.value.trim()) form.append(field.name, field.value.trim());
    }
    const size = $("#size").value;
    const sides = this.#sides();
    if (sides) {
      form.append("width", sides[0]);
      form.append("height", sides[1]);
    } else if (size && size !== "exact") {
      form.append("area", size);
    }
    const length = Number($("#length").value);
    if (length) form.append("num_frames", Math.max(1, Math.round(length * this.fps)));
  }

  /** Every choice by the name or id of its field. */
  read() {
    const chosen = {};
    for (const field of $$(".panel input, .panel select, .panel textarea", this.form)) {
      if (field.type !== "radio" || field.checked) chosen[field.id || field.name] = field.value;
    }
    return chosen;
  }

  write(chosen) {
    for (const field of $$(".panel input, .panel select, .panel textarea", this.form)) {
      const value = chosen[field.id || field.name];
      if (field.type === "radio") field.checked = value === undefined ? field.defaultChecked : field.value === value;
      else field.value = value ?? field.defaultValue ?? "";
    }
    for (const select of $$(".panel select", this.form)) if (select.selectedIndex < 0) select.selectedIndex = 0;
    $("#exact").hidden = $("#size").value !== "exact";
  }

  /** Takes over what was chosen for a job. */
  writeJob({ params, plan }) {
    const chosen = { shape: "picture", size: "", preset: "exact", fit: "crop", ...params };
    if (params.area) chosen.size = String(params.area);
    if (params.width && params.height) chosen.size = "exact";
    for (const name of params.styles || []) {
      const style = this.styles.find((known) => known.name === name);
      if (style) chosen[`style-${style.kind}`] = name;
    }
    if (params.num_frames) chosen.length = (params.num_frames / plan.fps).toFixed(2);
    this.write(chosen);
    $(".more", this.form).open = ["fps", "seed", "num_inference_steps", "guidance_scale"].some(
      (name) => chosen[name] !== undefined,
    );
  }

  /** A style's name for people. */
  styleText(name) {
    const style = this.styles.find((known) => known.name === name);
    return currentLanguage() === "zh" && style ? style.chinese : sentence(name);
  }

  /** Width and height of a fixed shape, or as typed; null where they follow the picture. */
  #sides() {
    if ($("#size").value === "exact") {
      const sides = [Number($("#width").value), Number($("#height").value)];
      return sides[0] && sides[1] ? sides : null;
    }
    const aspect = SHAPES[$("[name=shape]:checked", this.form)?.value];
    if (!aspect) return null;
    const { size_multiple: multiple, area: own } = this.defaults;
    const isDraft = $("[name=preset]:checked", this.form)?.value === "draft";
    const area = Number($("#size").value) || (isDraft ? Math.min(own, KNOWN_SIZES["480p"]) : own);
    const side = (length) => Math.max(4 * multiple, Math.floor(length / multiple + 1e-6) * multiple);
    return [side(Math.sqrt(area * aspect)), side(Math.sqrt(area / aspect))];
  }

  #makeLooks() {
    const kinds = [...new Set(this.styles.map((style) => style.kind))];
    const fields = kinds.map((kind) => {
      const styles = this.styles.filter((style) => style.kind === kind);
      const options = styles.map(({ name, english }) =>
        make("option", { value: name, title: english }, this.styleText(name)),
      );
      const none = make("option", { value: "" }, t(`look.${kind}`));
      return make("select", { name: "style", id: `style-${kind}`, "aria-label": t(`look.${kind}`) }, none, ...options);
    });
    $("#looks").replaceChildren(...fields);
  }

  #makeShapes() {
    const choices = Object.entries(SHAPES).map(([name, aspect]) => {
      const box = make("i", { className: aspect ? "" : "free" });
      box.style.aspectRatio = aspect ?? 1;
      box.style[aspect > 1 ? "width" : "height"] = "20px";
      const label = name === "picture" ? make("span", { "data-i18n": "shape.picture" }) : make("span", {}, name);
      const radio = make("input", { type: "radio", name: "shape", value: name, defaultChecked: name === "picture" });
      return make("label", {}, radio, box, label);
    });
    $("#shapes").replaceChildren(...choices);
  }

  #makeSizes() {
    const own = this.defaults.area;
    const smaller = Object.entries(KNOWN_SIZES).filter(([, area]) => area < own);
    const half = own < 640 * 368 ? [[`${squareText(own * 0.5625)}`, Math.round(own * 0.5625)]] : [];
    $("#size").replaceChildren(
      make("option", { value: "" }, sizeName(own)),
      ...[...smaller, ...half].map(([name, area]) =>
        make("option", { value: area }, name),
      ),
      make("option", { value: "exact" }, t("size.exact")),
    );
  }

  #makePresets() {
    const choices = (this.presets || []).map((name, index) => {
      const radio = make("input", { type: "radio", name: "preset", value: name, defaultChecked: index === 0 });
      const [title, text] = [make("strong", {}, t(`preset.${name}`)), make("small", {}, t(`preset.${name}.text`))];
      return make("label", {}, radio, title, text);
    });
    $("#presets").replaceChildren(...choices);
  }
}

/** "golden-hour" → "Golden hour". */
const sentence = (name) => (name[0].toUpperCase() + name.slice(1)).replaceAll("-", " ");

const squareText = (area) => `${Math.round(Math.sqrt(area))} × ${Math.round(Math.sqrt(area))}`;

const sizeName = (area) => Object.keys(KNOWN_SIZES).find((name) => KNOWN_SIZES[name] === area) ?? squareText(area);
