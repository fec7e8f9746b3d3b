// The voice: a file, a recording or typed text; heard, seen as a waveform with the clips' cuts, and cut to a length.

import { $, $$, acceptDrops, colour, icon, make, onFile, prepareCanvas, say } from "./dom.js";
import { onLanguage, t, timecode } from "./i18n.js";
import { isPicture } from "./picture.js";
import { Recorder } from "./recorder.js";

const BAR = 3; // pixels from one bar of the waveform to the next

export class Voice {
  /** @param onChange called when the voice or its wanted length changes. */
  constructor(root, onChange) {
    this.root = root;
    this.onChange = onChange;
    this.file = null;
    this.duration = null; // seconds, where the browser can tell
    this.length = null; // wanted seconds; null for all
    this.peaks = null;
    this.player = new Audio();
    this.recorder = new Recorder($(".recorder", root), (file) => this.choose(file));
    this.#listen();
    onLanguage(() => this.#draw());
  }

  get source() {
    return $("[name=source]:checked", this.root).value;
  }

  get isReady() {
    return this.source === "type" ? Boolean($("#text").value.trim()) : this.file !== null;
  }

  /** Fields of a request for what is said. */
  appendTo(form) {
    if (this.source === "type") {
      form.append("text", $("#text").value.trim());
      if ($("#speaker").value) form.append("voice", $("#speaker").value);
    } else {
      form.append("audio", this.file, this.file.name);
    }
  }

  /** Speakers for typed text; without any, that way is not offered. */
  offer(speakers) {
    $("[data-for=type]", this.root).hidden = !speakers.length;
    $("#speaker").replaceChildren(...speakers.map((name) => make("option", { value: name }, name)));
  }

  async choose(file) {
    this.#select("file");
    this.player.pause();
    URL.revokeObjectURL(this.player.src);
    Object.assign(this, { file, duration: null, length: null, peaks: null });
    if (file) this.player.src = URL.createObjectURL(file);
    this.#draw();
    this.onChange();
    if (file) await this.#read(file);
  }

  /** Wants a video of so many seconds, or of the whole voice (null). */
  cutTo(seconds) {
    this.length = seconds && this.duration && seconds >= this.duration ? null : seconds;
    this.#draw();
  }

  /** Shows where clips meet: the frames of each. */
  showClips(frames) {
    const cuts = frames.map((count) => {
      const cut = make("li");
      cut.style.flexGrow = count;
      return cut;
    });
    $(".cuts", this.root).replaceChildren(...cuts);
  }

  #listen() {
    const { root, player } = this;
    for (const choice of $$("[name=source]", root)) choice.addEventListener("change", () => this.#select(this.source));
    onFile($("#audio"), (file) => this.choose(file));
    acceptDrops(root, (files) => files.length && this.choose(files.find((file) => !isPicture(file)) || files[0]));
    $("#text").addEventListener("input", this.onChange);
    $("#speaker").addEventListener("change", this.onChange);
    $(".remove", root).addEventListener("click", () => this.choose(null));
    $(".play", root).addEventListener("click", () => (player.paused ? this.#play() : player.pause()));
    for (const event of ["play", "pause", "ended"]) player.addEventListener(event, () => this.#draw());
    $(".trim", root).addEventListener("input", (event) => {
      this.cutTo(Math.max(0.1, Number(event.target.value)));
      this.onChange();
    });
    new ResizeObserver(() => this.#draw()).observe($(".track", root));
  }

  #select(source) {
    $(`[value=${source}]`, this.root).checked = true;
    for (const panel of $$(".source", this.root)) panel.hidden = panel.dataset.source !== source;
    if (source !== "record") this.recorder.stop();
    if (source !== "file") this.player.pause();
    this.#draw();
    this.onChange();
  }

  async #read(file) {
    const context = new AudioContext();
    try {
      const sound = await context.decodeAudioData(await file.arrayBuffer());
      if (file !== this.file) return;
      this.duration = sound.duration;
      this.peaks = peaksOf(sound);
    } catch (error) {
      if (!(error instanceof DOMException)) throw error;
      if (file === this.file) this.unreadable = file;
    } finally {
      context.close();
    }
    this.#draw();
    this.onChange();
  }

  #play() {
    if (this.length && this.player.currentTime >= this.length) this.player.currentTime = 0;
    this.player.play();
    const follow = () => {
      if (this.length && this.player.currentTime >= this.length) this.player.pause();
      this.#draw();
      if (!this.player.paused) requestAnimationFrame(follow);
    };
    requestAnimationFrame(follow);
  }

  #draw() {
    const { root, file, player } = this;
    $(".source[data-source=file] .drop", root).classList.toggle("covered", file !== null);
    $(".lane", root).hidden = file === null;
    const play = $(".play", root);
    play.setAttribute("aria-label", t(player.paused ? "voice.play" : "voice.pause"));
    play.replaceChildren(icon(player.paused ? "play" : "pause"));
    const isUnreadable = file && this.unreadable === file;
    say($(".file-name", root), file && (isUnreadable ? t("voice.unreadable", { name: file.name }) : file.name));
    this.#drawTrim();
    this.#drawTime();
    if (this.peaks) this.#drawWaveform();
    else prepareCanvas($(".track canvas", root));
  }

  #drawTrim() {
    const trim = $(".trim", this.root);
    trim.hidden = this.duration === null;
    trim.max = Math.ceil(10 * (this.duration ?? 0)) / 10; // whole steps, so that the end can be reached
    trim.value = this.length ?? trim.max;
    trim.setAttribute("aria-valuetext", t("length.value", { seconds: Number(trim.value).toFixed(1) }));
    $(".cuts", this.root).style.width = `${100 * this.#share()}%`;
  }

  #drawTime() {
    const total = this.length ?? this.duration;
    const isShown = this.source === "file" && total !== null;
    say($(".timecode", this.root), isShown && `${timecode(Math.min(this.player.currentTime, total))} / ${timecode(total)}`);
  }

  #share() {
    return this.duration && this.length ? Math.min(1, this.length / this.duration) : 1;
  }

  #drawWaveform() {
    const [context, width, height] = prepareCanvas($(".track canvas", this.root));
    const played = this.player.currentTime / this.duration;
    const colours = { played: colour("accent"), kept: colour("wave"), cut: colour("line") };
    for (let x = 0; x + 2 <= width; x += BAR) {
      const at = x / width;
      const part = this.peaks.slice(Math.floor(at * this.peaks.length), Math.ceil(((x + BAR) / width) * this.peaks.length));
      const tall = Math.max(2, height * 0.92 * Math.max(...part, 0));
      context.fillStyle = at >= this.#share() ? colours.cut : at < played ? colours.played : colours.kept;
      context.fillRect(x, (height - tall) / 2, 2, tall);
    }
  }
}

/** 2,000 loudest values along a sound, the loudest of all 1. */
function peaksOf(sound) {
  const samples = sound.getChannelData(0);
  const size = Math.max(1, Math.floor(samples.length / 2000));
  const peaks = [];
  for (let start = 0; start < samples.length; start += size) {
    peaks.push(samples.subarray(start, start + size).reduce((most, sample) => Math.max(most, Math.abs(sample)), 0));
  }
  const loudest = Math.max(...peaks, 1e-4);
  return peaks.map((peak) => peak / loudest);
}
