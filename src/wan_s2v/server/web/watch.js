// One shot: its progress clip by clip with the growing preview, then the result.

import { ApiError, cancelVideo, deleteVideo, fetchPreview, followVideo, mediaUrl } from "./api.js";
import { $, $$, list, make, say } from "./dom.js";
import { closeVideo, frameAt, openVideo } from "./film.js";
import { currentLanguage, onLanguage, t } from "./i18n.js";
import { detail, headline, isActive, numClips, numDone } from "./job.js";

const STRIP_HEIGHT = 160; // pixels of a still, twice what the strip shows
const LAST_FRAME_S = 0.05; // a video that stopped this near to its end has ended

export class Watch {
  /**
   * @param styleText name of a style → text for people.
   * @param listeners {changed(job), again(job), gone()}
   */
  constructor(root, styleText, listeners) {
    this.root = root;
    this.styleText = styleText;
    this.listeners = listeners;
    this.job = null;
    this.previews = [];
    this.video = $("video", root);
    $(".cancel", root).addEventListener("click", () => this.#try(() => cancelVideo(this.job.id)));
    $(".delete", root).addEventListener("click", () => this.#delete());
    $(".again", root).addEventListener("click", () => listeners.again(this.job));
    onLanguage(() => this.job && this.#show());
  }

  /** Follows a job, before its picture if that is known, until another one is opened or `close` is called. */
  open(job, picture) {
    this.close();
    this.job = null;
    const backdrop = $(".backdrop", this.root);
    backdrop.hidden = !picture;
    if (picture) backdrop.src = picture;
    this.shown = null;
    this.following = new AbortController();
    $(".strip", this.root).replaceChildren();
    this.#receive(job);
    if (isActive(job)) this.#follow(job.id, this.following.signal);
  }

  close() {
    this.following?.abort();
    this.shown = null;
    document.title = "Wan S2V";
    this.video.pause();
    if (this.video.hasAttribute("src")) closeVideo(this.video);
    this.video.hidden = true;
    for (const address of this.previews.splice(0)) URL.revokeObjectURL(address);
  }

  async #follow(id, signal) {
    try {
      await followVideo(id, (job) => signal.aborted || this.#receive(job), signal);
    } catch (error) {
      this.#complain(error);
    }
  }

  #receive(job) {
    const hasChanged = this.job?.status !== job.status;
    this.job = job;
    this.#show();
    this.#showVideo();
    if (hasChanged) this.listeners.changed(job);
  }

  async #try(action) {
    try {
      await action();
    } catch (error) {
      this.#complain(error);
    }
  }

  #complain(error) {
    if (!(error instanceof ApiError)) throw error;
    say($(".error", this.root), error.message || t("offline"));
  }

  async #delete() {
    const dialog = $("#confirm");
    dialog.returnValue = "";
    dialog.showModal();
    await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
    if (dialog.returnValue !== "delete") return;
    await this.#try(async () => {
      await deleteVideo(this.job.id);
      this.listeners.gone();
    });
  }

  #show() {
    const { root, job } = this;
    root.dataset.status = job.status;
    say($("h1", root), headline(job));
    document.title = `${headline(job)} · Wan S2V`;
    say($(".detail", root), detail(job));
    say($(".error", root), job.error);
    list($(".warnings", root), job.warnings);
    this.#showBar();
    this.#showStrip();
    this.#showActions();
    this.#showFacts();
    say($(".waiting", root), !this.shown && job.status !== "done" && t(`waiting.${job.status}`));
  }

  #showBar() {
    const bar = $(".bar", this.root);
    const percent = Math.round(100 * (this.job.progress?.fraction ?? 0));
    bar.hidden = this.job.status !== "running";
    bar.setAttribute("aria-valuenow", percent);
    $("i", bar).style.width = `${percent}%`;
  }

  #showActions() {
    const { root, job } = this;
    for (const link of $$(".download", root)) {
      link.hidden = job.status !== "done";
      link.href = mediaUrl(job, link.dataset.kind);
      link.download = link.dataset.kind === "content" ? `${job.id}.mp4` : `${job.id}.mp4.json`;
    }
    $(".cancel", root).hidden = !isActive(job);
    $(".delete", root).hidden = isActive(job);
  }

  #showFacts() {
    const { plan, params, started_at: started } = this.job;
    const language = currentLanguage() === "zh" ? "zh-CN" : "en-GB";
    const date = new Date(started * 1000);
    const facts = {
      prompt: params.prompt,
      style: (params.styles || []).map(this.styleText).join(currentLanguage() === "zh" ? "，" : ", "),
      size: plan && `${plan.width} × ${plan.height}`,
      length: plan && t("length.frames", { seconds: plan.duration_s.toFixed(2), frames: plan.num_frames, fps: plan.fps }),
      preset: t(`preset.${params.preset || "exact"}`),
      sampling: plan && t("sampling", { steps: plan.num_inference_steps, scheduler: plan.scheduler }),
      seed: plan?.seed,
      made: started && date.toLocaleString(language, { dateStyle: "medium", timeStyle: "short" }),
      id: this.job.id,
    };
    const rows = Object.entries(facts).filter(([, value]) => value !== undefined && value !== null && value !== "");
    $(".facts", this.root).replaceChildren(
      ...rows.flatMap(([name, value]) => [make("dt", {}, t(`fact.${name}`)), make("dd", {}, String(value))]),
    );
  }

  #showStrip() {
    const { job } = this;
    const count = numClips(job);
    const strip = $(".strip", this.root);
    while (strip.children.length > count) strip.lastChild.remove();
    while (strip.children.length < count) strip.append(make("li", {}, make("span", {}, strip.children.length + 1), make("i")));
    const done = numDone(job);
    [...strip.children].forEach((cell, index) => {
      const isNow = job.status === "running" && index === done;
      cell.className = index < done ? "done" : isNow ? "now" : "";
      cell.setAttribute("aria-label", t("strip.clip", { number: index + 1 }));
      const share = (job.progress?.fraction ?? 0) * count - index;
      $("i", cell).style.width = isNow ? `${Math.round(100 * share)}%` : "0";
      if (isNow) keepInSight(strip, cell);
    });
    strip.hidden = job.status === "failed" || job.status === "cancelled";
  }

  /** The result; before it, what there is of it, whenever it has grown. */
  async #showVideo() {
    const { job } = this;
    const isDone = job.status === "done";
    const clips = isDone ? numClips(job) : job.has_preview ? numDone(job) : 0;
    const tally = $(".tally", this.root);
    tally.hidden = isDone || !clips;
    $("span", tally).textContent = t("preview.tally", { done: clips, count: numClips(job) });
    const wanted = `${job.id} ${isDone} ${clips}`;
    if (!clips || this.shown === wanted) return;
    this.shown = wanted;
    const address = isDone ? mediaUrl(job, "content") : await this.#fetchPreview(job);
    if (!address || this.shown !== wanted) return;
    $(".backdrop", this.root).hidden = true;
    say($(".waiting", this.root), "");
    continueWith(this.video, address);
    this.#fillStrip(address, clips, this.following.signal);
  }

  async #fetchPreview(job) {
    try {
      const address = await fetchPreview(job);
      this.previews.push(address);
      if (this.previews.length > 2) URL.revokeObjectURL(this.previews.shift()); // the one before may still be read
      return address;
    } catch (error) {
      this.#complain(error);
      return null;
    }
  }

  async #fillStrip(address, clips, signal) {
    const video = await openVideo(address);
    if (!video) return;
    for (let index = 0; index < clips; index += 1) {
      const cell = $(".strip", this.root).children[index];
      if ($("canvas", cell)) continue;
      const stills = await this.#stills(video, cell, index, clips);
      if (signal.aborted) break;
      if (!$("canvas", cell)) cell.prepend(...stills);
    }
    closeVideo(video);
  }

  /** As many frames of a clip as its cell has room for. */
  async #stills(video, cell, index, clips) {
    const width = (cell.clientHeight * video.videoWidth) / video.videoHeight;
    const count = Math.max(1, Math.round(cell.clientWidth / width));
    const stills = [];
    for (let still = 0; still < count; still += 1) {
      stills.push(await frameAt(video, (index + (still + 0.5) / count) / clips, STRIP_HEIGHT));
    }
    return stills;
  }
}

/** Changes to a longer version of a video without losing the viewer's place. */
function continueWith(video, address) {
  const { currentTime, paused, duration } = video;
  const hasEnded = currentTime > 0 && currentTime >= duration - LAST_FRAME_S;
  video.hidden = false;
  video.src = address;
  video.currentTime = currentTime || 0;
  if (currentTime && (!paused || hasEnded)) video.play().catch(ignoreRefusedPlay);
}

/** Browsers may refuse to play what nobody clicked on. */
function ignoreRefusedPlay(error) {
  if (error.name !== "NotAllowedError" && error.name !== "AbortError") throw error;
}

function keepInSight(strip, cell) {
  const [left, right] = [cell.offsetLeft - strip.offsetLeft, cell.offsetLeft - strip.offsetLeft + cell.offsetWidth];
  if (right > strip.scrollLeft + strip.clientWidth) strip.scrollLeft = right - strip.clientWidth;
  else if (left < strip.scrollLeft) strip.scrollLeft = left;
}
