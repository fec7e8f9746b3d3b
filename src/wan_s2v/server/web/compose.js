// A new shot: picture, voice and options; what it will be and take, as they change; and its start.

import { ApiError, createVideo, planVideo } from "./api.js";
import { $, list, say } from "./dom.js";
import { onLanguage, t, timeText } from "./i18n.js";
import { Options } from "./options.js";
import { Picture } from "./picture.js";
import { Voice } from "./voice.js";

const PAUSE_MS = 350; // without a change, before the server is asked for a plan

export class Compose {
  /** @param onStarted called with the job that was accepted. */
  constructor(form, onStarted) {
    this.onStarted = onStarted;
    this.planned = null;
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

  /** What is known is of before the change; a new plan is asked for once changes pause. */
  #changed() {
    this.asking?.abort();
    this.asking = new AbortController();
    clearTimeout(this.pause);
    this.problem = null;
    this.isThinking = this.#isReady;
    if (this.#isReady) this.pause = setTimeout(() => this.#plan(this.asking.signal), PAUSE_MS);
    else this.#forget();
    this.#show();
  }

  async #plan(signal) {
    try {
      const planned = await planVideo(this.#request(), signal);
      if (signal.aborted) return;
      this.planned = planned;
      const { width, height } = planned;
      this.picture.frameAs({ width, height, fit: this.options.fit, exact: this.options.isExact });
      this.voice.showClips(planned.plan?.frames_per_clip ?? Array(planned.num_clips).fill(1));
    } catch (error) {
      if (signal.aborted) return;
      this.#fail(error);
      this.#forget();
    }
    this.isThinking = false;
    this.#show();
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
      this.onStarted(job, this.picture.image.src);
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
