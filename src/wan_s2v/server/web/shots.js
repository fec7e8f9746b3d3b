// The queue and the history, newest first, as cards with a frame of each film.

import { ApiError, getVideos, mediaUrl } from "./api.js";
import { $, icon, make, say } from "./dom.js";
import { closeVideo, frameAt, openVideo } from "./film.js";
import { onLanguage, t, timeText } from "./i18n.js";
import { detail, headline, isActive } from "./job.js";

const POLL_MS = 2500; // while something is in the queue
const POSTER_HEIGHT = 360; // pixels

export class Shots {
  constructor() {
    this.jobs = new Map();
    this.cards = new Map();
    this.posters = new Map(); // job id → canvas or image; kept for cards that are drawn again
    this.current = null;
    this.sight = new IntersectionObserver((entries) => this.#seen(entries), { rootMargin: "200px" });
    $("#older").addEventListener("click", () => this.load([...this.jobs.keys()].at(-1)));
    document.addEventListener("visibilitychange", () => document.hidden || this.load());
    onLanguage(() => this.#show());
  }

  /** Asks the server for the newest shots, or for those before one. */
  async load(after = null) {
    clearTimeout(this.timer);
    let found;
    try {
      found = await getVideos(after);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.timer = setTimeout(() => this.load(), 2 * POLL_MS);
      return;
    }
    if (!after) this.#dropMissing(found);
    for (const job of found.data) this.jobs.set(job.id, job);
    if (after || this.jobs.size <= found.data.length) $("#older").hidden = !found.has_more;
    this.#show();
    if (!document.hidden && this.#numActive) this.timer = setTimeout(() => this.load(), POLL_MS);
  }

  /** Takes over what another part of the page knows of a job. */
  put(job, poster = null) {
    this.jobs.set(job.id, job);
    if (poster) this.posters.set(job.id, make("img", { src: poster, alt: "" }));
    this.#show();
    if (isActive(job)) this.load();
  }

  remove(id) {
    this.jobs.delete(id);
    this.#show();
  }

  /** Marks the card of the shot that is open. */
  select(id) {
    this.current = id;
    this.#show();
  }

  get #numActive() {
    return [...this.jobs.values()].filter(isActive).length;
  }

  /** A job within the newest that the server no longer has was deleted elsewhere. */
  #dropMissing({ data, has_more: hasMore }) {
    const oldest = hasMore ? data.at(-1).created_at : 0;
    const found = new Set(data.map((job) => job.id));
    for (const [id, job] of this.jobs) if (job.created_at >= oldest && !found.has(id)) this.jobs.delete(id);
  }

  #show() {
    const jobs = [...this.jobs.values()].sort((one, other) => other.created_at - one.created_at);
    this.jobs = new Map(jobs.map((job) => [job.id, job]));
    for (const [id, card] of this.cards) if (!this.jobs.has(id)) this.#drop(id, card);
    jobs.forEach((job, index) => {
      const card = this.cards.get(job.id) ?? this.#add(job);
      this.#fill(card, job);
      if ($("#cards").children[index] !== card) $("#cards").insertBefore(card, $("#cards").children[index] ?? null);
    });
    say($("#shots-empty"), !jobs.length && t("shots.empty"));
    say($("#shots-count"), this.#numActive ? t("shots.count", { active: this.#numActive }) : "");
  }

  #add(job) {
    const poster = make("span", { className: "poster" }, icon("film"));
    const bar = make("span", { className: "bar" }, make("i"));
    const text = make("span", { className: "card-text" }, make("strong"), make("small"));
    const link = make("a", { href: `#/shots/${job.id}` }, poster, bar, text);
    const card = make("li", { className: "card" }, link);
    card.dataset.id = job.id;
    this.cards.set(job.id, card);
    this.sight.observe(card);
    return card;
  }

  #drop(id, card) {
    this.sight.unobserve(card);
    this.cards.delete(id);
    this.posters.delete(id);
    card.remove();
  }

  #fill(card, job) {
    card.dataset.status = job.status;
    const title = job.params.prompt || t("shots.untitled");
    const link = $("a", card);
    link.setAttribute("aria-label", t("shots.open", { title, status: headline(job) }));
    if (job.id === this.current) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
    $("strong", card).textContent = title;
    $("small", card).textContent = [headline(job), shortDetail(job)].filter(Boolean).join(" · ");
    $(".bar", card).hidden = job.status !== "running";
    $(".bar i", card).style.width = `${100 * (job.progress?.fraction ?? 0)}%`;
    const poster = this.posters.get(job.id);
    if (poster && $(".poster", card).firstChild !== poster) $(".poster", card).replaceChildren(poster);
    if (card.inSight) this.#makePoster(card);
  }

  #seen(entries) {
    for (const { target, isIntersecting } of entries) {
      target.inSight = isIntersecting;
      if (isIntersecting) this.#makePoster(target);
    }
  }

  /** A frame of the result, once there is one. */
  async #makePoster(card) {
    const job = this.jobs.get(card.dataset.id);
    if (job?.status !== "done" || card.hasFrame) return;
    card.hasFrame = true;
    const video = await openVideo(mediaUrl(job, "content"));
    if (!video) return;
    this.posters.set(job.id, await frameAt(video, 0.3, POSTER_HEIGHT));
    closeVideo(video);
    if (this.jobs.has(job.id)) this.#fill(card, this.jobs.get(job.id));
  }
}

/** For a finished film its length and size, for a running one the time left, else what comes next. */
function shortDetail(job) {
  if (job.status === "running") return job.progress ? t("running.left", { time: timeText(job.progress.seconds_left) }) : "";
  if (job.status !== "done") return detail(job);
  return `${t("time.s", { s: job.plan.duration_s.toFixed(1) })} · ${job.plan.width} × ${job.plan.height}`;
}
