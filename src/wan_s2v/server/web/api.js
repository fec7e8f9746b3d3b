// The server's HTTP interface: one function per route, errors with the server's own words, one token for all of them.

import { isActive } from "./job.js";

const TOKEN = "wan-s2v.token";
let enterToken = async () => "";
let signingIn = null;

/** What went wrong, as the server says it; status 0 where no server answered. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Sets the function that asks a person for the token; it is told whether one was refused before. */
export function onTokenWanted(ask) {
  enterToken = ask;
}

/** Facts about the server; for a token it also gives the cookie that media elements show. */
export const getModel = () => getJson("v1/model");
export const getStyles = () => getJson("v1/styles");
export const getVideo = (id) => getJson(`v1/videos/${id}`);
export const getVideos = (after, limit = 24) => getJson(`v1/videos?limit=${limit}${after ? `&after=${after}` : ""}`);
export const planVideo = (body) => getJson("v1/plan", { method: "POST", body });
export const createVideo = (body) => getJson("v1/videos", { method: "POST", body });
export const cancelVideo = (id) => request(`v1/videos/${id}/cancel`, { method: "POST" });
export const deleteVideo = (id) => request(`v1/videos/${id}`, { method: "DELETE" });

/** Calls `receive(job)` for every change of a job until it has ended or `signal` aborts; survives lost connections. */
export async function followVideo(id, receive, signal) {
  for (;;) {
    try {
      const response = await request(`v1/videos/${id}/events`, { signal });
      for await (const job of events(response.body)) {
        receive(job);
        if (!isActive(job)) return;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error.status) throw error;
    }
    await new Promise((resume) => setTimeout(resume, 1000));
    if (signal.aborted) return;
  }
}

/** Where a job's "content" or "sidecar" lies. */
export const mediaUrl = (job, kind) => `v1/videos/${job.id}/${kind}`;

/** The clips that are finished, as an address of this page: a file that still grows is not served in parts. */
export async function fetchPreview(job) {
  const response = await request(`v1/videos/${job.id}/preview`);
  return URL.createObjectURL(await response.blob());
}

async function getJson(path, options) {
  return (await request(path, options)).json();
}

async function request(path, options) {
  const token = sessionStorage.getItem(TOKEN);
  const response = await send(path, token, options);
  if (response.status === 401) {
    if (sessionStorage.getItem(TOKEN) === token) await (signingIn ??= signIn(Boolean(token)));
    return request(path, options);
  }
  if (!response.ok) throw new ApiError(response.status, await messageOf(response));
  return response;
}

async function send(path, token, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  try {
    return await fetch(path, { ...options, headers });
  } catch (error) {
    throw error.name === "AbortError" ? error : new ApiError(0, "");
  }
}

/** One question for all requests that were refused, until a token is right. */
async function signIn(wasRefused) {
  try {
    for (let isWrong = wasRefused; ; isWrong = true) {
      const token = await enterToken(isWrong);
      const response = await send("v1/model", token);
      if (response.status !== 401) return sessionStorage.setItem(TOKEN, token);
    }
  } finally {
    signingIn = null;
  }
}

async function messageOf(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error.message;
  } catch {
    return `${response.status} ${response.statusText} ${text.slice(0, 300)}`.trim(); // from a proxy, not from our server
  }
}

/** The jobs in a stream of server-sent events. */
async function* events(body) {
  let text = "";
  for await (const chunk of chunks(body.pipeThrough(new TextDecoderStream()))) {
    const blocks = (text + chunk.replaceAll("\r", "")).split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data:"));
      if (data.length) yield JSON.parse(data.map((line) => line.slice(5)).join("\n"));
    }
  }
}

async function* chunks(stream) {
  const reader = stream.getReader(); // Safari's streams are not iterable
  for (let part = await reader.read(); !part.done; part = await reader.read()) yield part.value;
}
