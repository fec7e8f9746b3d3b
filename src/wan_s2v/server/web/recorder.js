// A voice from the microphone, with a meter that shows that it is heard.

import { $, colour, make, prepareCanvas } from "./dom.js";
import { onLanguage, t, timecode } from "./i18n.js";

const METER_S = 4; // what the meter shows of the past

export class Recorder {
  /** @param onDone called with the file of a finished recording. */
  constructor(root, onDone) {
    this.root = root;
    this.onDone = onDone;
    this.recording = null;
    this.button = $("button", root);
    this.button.addEventListener("click", () => (this.recording ? this.stop() : this.#start()));
    onLanguage(() => this.#describe());
    this.#describe();
  }

  stop() {
    if (this.recording?.recorder.state === "recording") this.recording.recorder.stop();
  }

  async #start() {
    const stream = await this.#microphone();
    if (!stream) return;
    const recorder = new MediaRecorder(stream);
    const parts = [];
    recorder.addEventListener("dataavailable", (event) => parts.push(event.data));
    recorder.addEventListener("stop", () => this.#finish(parts));
    const context = new AudioContext();
    const analyser = context.createAnalyser();
    context.createMediaStreamSource(stream).connect(analyser);
    this.recording = { stream, recorder, context, analyser, started: performance.now(), levels: [] };
    recorder.start();
    this.#describe();
    this.#listen();
  }

  async #microphone() {
    if (!navigator.mediaDevices?.getUserMedia || !window.MediaRecorder) return this.#refuse("record.insecure");
    try {
      return await navigator.mediaDevices.getUserMedia({ audio: true });
    } catch (error) {
      if (!(error instanceof DOMException)) throw error;
      return this.#refuse("record.denied");
    }
  }

  #refuse(reason) {
    this.#describe(reason);
    return null;
  }

  #finish(parts) {
    const { stream, recorder, context } = this.recording;
    const seconds = this.#seconds();
    for (const track of stream.getTracks()) track.stop();
    context.close();
    this.recording = null;
    this.#describe();
    const name = t("record.name", { time: t("time.s", { s: seconds.toFixed(1) }) });
    this.onDone(new File(parts, name, { type: recorder.mimeType }));
  }

  #listen() {
    if (!this.recording) return;
    const { analyser, levels } = this.recording;
    const samples = new Float32Array(analyser.fftSize);
    analyser.getFloatTimeDomainData(samples);
    levels.push({ at: this.#seconds(), level: Math.sqrt(samples.reduce((sum, s) => sum + s * s, 0) / samples.length) });
    while (levels[0].at < this.#seconds() - METER_S) levels.shift();
    this.#draw();
    $("span", this.root).textContent = timecode(this.#seconds());
    requestAnimationFrame(() => this.#listen());
  }

  #draw() {
    const [context, width, height] = prepareCanvas($("canvas", this.root));
    context.fillStyle = colour("accent");
    for (const { at, level } of this.recording.levels) {
      const x = width * (1 - (this.#seconds() - at) / METER_S);
      const tall = Math.max(2, height * Math.min(1, Math.sqrt(level) * 1.6)); // speech lies near an RMS of 0.1
      context.fillRect(x, (height - tall) / 2, 2, tall);
    }
  }

  #seconds() {
    return (performance.now() - this.recording.started) / 1000;
  }

  #describe(problem = null) {
    const isOn = this.recording !== null;
    this.root.classList.toggle("on", isOn);
    this.button.setAttribute("aria-pressed", isOn);
    this.button.setAttribute("aria-label", t(isOn ? "record.stop" : "record.start"));
    $("strong", this.root).textContent = t(isOn ? "record.running" : "record.start");
    const text = $("span", this.root);
    text.replaceWith(make("span", problem ? { role: "alert" } : {}, t(problem || "record.ready")));
    if (!isOn) prepareCanvas($("canvas", this.root));
  }
}
