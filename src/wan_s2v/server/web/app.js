// The page: connects its parts, and shows the one that the address names (#/ or #/shots/ID).

import { ApiError, getModel, getStyles, getVideo, onTokenWanted } from "./api.js";
import { Compose } from "./compose.js";
import { $, $$, say } from "./dom.js";
import { onLanguage, setLanguage, t, translatePage } from "./i18n.js";
import { Shots } from "./shots.js";
import { Watch } from "./watch.js";

const RETRY_MS = 3000;

const shots = new Shots();
const portraits = new Map(); // job id → address of its portrait, for shots that were started here
const compose = new Compose($("#compose"), (job, picture) => {
  portraits.set(job.id, URL.createObjectURL(picture));
  shots.put(job, portraits.get(job.id));
  location.hash = `#/shots/${job.id}`;
});
const watch = new Watch($("#watch"), (name) => compose.options.styleText(name), {
  changed: (job) => shots.put(job),
  again: (job) => {
    compose.options.writeJob(job);
    location.hash = "#/";
    compose.refresh();
  },
  gone: () => {
    shots.remove(watch.job.id);
    location.hash = "#/";
  },
});
let model = null;

async function showAddress() {
  const [, id] = location.hash.match(/^#\/shots\/(\w+)$/) || [];
  shots.select(id ?? null);
  watch.close();
  if (id) await openShot(id);
  const isWatching = Boolean(id) && watch.job?.id === id;
  document.body.dataset.view = isWatching ? "watch" : "compose";
  $("#watch").hidden = !isWatching;
  $("#compose").hidden = isWatching;
  window.scrollTo(0, 0);
  if (isWatching) $("#watch h1").focus({ preventScroll: true });
}

async function openShot(id) {
  try {
    watch.open(shots.jobs.get(id) ?? (await getVideo(id)), portraits.get(id));
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    say($("#trouble"), error.message || t("offline"));
  }
}

function showModel() {
  say($("#model"), model && t("model.on", model));
}

function askToken(wasRefused) {
  const dialog = $("#token");
  const input = $("input", dialog);
  input.value = "";
  $(".error", dialog).hidden = !wasRefused;
  dialog.showModal();
  return new Promise((resolve) => {
    $("form", dialog).onsubmit = () => resolve(input.value.trim());
  });
}

async function connect() {
  try {
    const [found, { styles }] = await Promise.all([getModel(), getStyles()]);
    model = found;
    compose.offer(model, styles);
    showModel();
    await shots.load();
    await showAddress();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    say($("#trouble"), error.message || t("offline"));
    setTimeout(connect, RETRY_MS);
  }
}

translatePage();
onLanguage(showModel);
onTokenWanted(askToken);
for (const button of $$("[data-language]")) button.addEventListener("click", () => setLanguage(button.dataset.language));
$("#token").addEventListener("cancel", (event) => event.preventDefault());
window.addEventListener("hashchange", showAddress);
window.addEventListener("dragover", (event) => event.preventDefault());
window.addEventListener("drop", (event) => event.preventDefault());
connect();
