// A new shot: picture, voice and options; what it will be and take, as they change; and its start.

import { ApiError, createVideo, planVideo } from "./api.js";
import { $, list, say } from "./dom.js";
import { onLanguage, t, timeText } from "./i18n.js";
import { Options } from "./options.js";
import { Picture } from "./picture.js";
import { Voice } from "./voice.js";

const PAUSE_MS = 350; // without a change, before the server is asked for a plan

export class Compose {
  /** @param onStarted called with the job that was accepted and its portrait, a file. */
  constructor(form, onStarted) {
    this.onStarted = onStarted;
    this.planned = null;
    this.numChanges = 0;
    const change = () => this.#changed();
    this.picture = new Picture($("#picture"), change);
    this.voice = new Voice($("#voice"), () => {
      $("#length").value = this.voice.length?.toFixed(1) ?? "";
      change();
    });
    this.options = new Options(form, () => this.refresh());
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#start();
    });
    onLanguage(() => {
      this.options.translate();
      this.#show();
    });
  }

  offer(model, styles) {
    this.options.offer(model, styles);
    this.voice.offer((model.voices || []).map((voice) => voice.name ?? voice));
    this.#show();
  }

  /** Asks for a plan again, after options were written from outside. */
  refresh() {
    this.voice.cutTo(Number($("#length").value) || null);
    this.#changed();
  }

  #request() {
    const body = new FormData();
    body.append("image", this.picture.file, this.picture.file.name);
    this.voice.appendTo(body);
    this.options.appendTo(body);
    return body;
  }

  get #isReady() {
    return this.picture.file !== null && this.voice.isReady;
  }

  /** What is known may be wrong now; the server is asked again once changes pause. */
  #changed() {
    this.numChanges += 1;
    clearTimeout(this.pause);
    this.problem = null;
    this.isThinking = this.#isReady;
    if (this.#isReady) this.pause = setTimeout(() => this.#plan(), PAUSE_MS);
    else this.#forget();
    this.#show();
  }

  /** Asks for one plan at a time, and for another one if something has changed meanwhile. */
  async #plan() {
    if (this.isPlanning) return;
    this.isPlanning = true;
    const asked = this.numChanges;
    const isCurrent = () => asked === this.numChanges;
    try {
      const planned = await planVideo(this.#request());
      if (isCurrent()) this.#take(planned);
    } catch (error) {
      if (isCurrent()) this.#refuse(error);
    }
    this.isPlanning = false;
    if (isCurrent()) this.isThinking = false;
    else if (this.#isReady) this.#plan();
    this.#show();
  }

  #take(planned) {
    this.planned = planned;
    const { width, height } = planned;
    this.picture.frameAs({ width, height, fit: this.options.fit, exact: this.options.isExact });
    this.voice.showClips(planned.plan.frames_per_clip);
  }

  #refuse(error) {
    this.#fail(error);
    this.#forget();
  }

  #forget() {
    this.planned = null;
    this.picture.frameAs(null);
    this.voice.showClips([]);
  }

  async #start() {
    if (!this.#isReady || this.isSending) return;
    this.isSending = true;
    this.#show();
    try {
      const job = await createVideo(this.#request());
      this.onStarted(job, this.picture.file);
    } catch (error) {
      this.#fail(error);
    }
    this.isSending = false;
    this.#show();
  }

  #fail(error) {
    if (!(error instanceof ApiError)) throw error;
    this.problem = error;
  }

  #show() {
    const { planned, problem } = this;
    say($("#trouble"), problem && (problem.message || t("offline")));
    list($(".start .warnings"), problem ? [] : planned?.warnings);
    $("#plan").classList.toggle("stale", Boolean(this.isThinking && planned));
    $("#plan").replaceChildren(...this.#planText());
    const start = $("#start");
    start.disabled = !this.#isReady || this.isSending || Boolean(problem?.status);
    start.textContent = t(this.isSending ? "starting" : "start");
  }

  /** 5.1 s · 256 × 256 · 3 clips · about 40 s */
  #planText() {
    const { planned } = this;
    if (!this.#isReady) return [t(this.picture.file ? "plan.voice" : this.voice.isReady ? "plan.portrait" : "plan.both")];
    if (this.problem) return [];
    if (!planned) return [t("plan.thinking")];
    const { num_clips: count, seconds } = planned;
    const takes = document.createElement("strong");
    takes.textContent = seconds == null ? t("plan.unknown") : t("plan.about", { time: timeText(seconds) });
    const parts = [
      t("time.s", { s: planned.duration_s.toFixed(1) }),
      `${planned.width} × ${planned.height}`,
      count === 1 ? t("plan.clips.one") : t("plan.clips", { count }),
    ];
    return [parts.join(" · "), document.createElement("br"), takes];
  }
}
