// What a job of the server says about itself, in numbers and words.

import { t, timeText } from "./i18n.js";

export const isActive = (job) => job.status === "queued" || job.status === "running";

/** What a job is doing, in a few words. */
export function headline(job) {
  const { progress } = job;
  if (job.status !== "running" || !progress) return t(`status.${job.status}`);
  return t("running.clip", { clip: progress.clip, count: progress.num_clips });
}

/** What comes next: the queue before it, the time left, the time it took. */
export function detail(job) {
  const { progress, status, position } = job;
  if (status === "queued") return position > 1 ? t("queue.behind", { count: position - 1 }) : t("queue.next");
  if (status === "done") return t("took", { time: timeText(job.finished_at - job.started_at) });
  if (status !== "running" || !progress) return "";
  const step = t("stage.denoising", { step: progress.step, count: progress.num_steps });
  const stage = progress.stage === "denoising" ? step : t(`stage.${progress.stage}`);
  return `${stage} · ${t("running.left", { time: timeText(progress.seconds_left) })}`;
}

export const numClips = (job) => job.progress?.num_clips ?? job.plan?.num_clips ?? 1;

/** Finished clips. */
export function numDone(job) {
  if (job.status === "done") return numClips(job);
  if (!job.progress) return 0;
  return job.progress.stage === "writing" ? job.progress.num_clips : job.progress.clip - 1;
}
