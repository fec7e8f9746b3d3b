// Still frames of a video on the server, for the film strip and the cards.

/** A canvas with the frame at a share (0 to 1) of the video, `height` pixels tall; null if it cannot be read. */
export async function frameAt(video, share, height) {
  await seek(video, share * video.duration);
  const canvas = document.createElement("canvas");
  canvas.height = height;
  canvas.width = Math.round((height * video.videoWidth) / video.videoHeight);
  canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
  return canvas;
}

/** A video that is only looked at, ready to seek; null if there is none at this address. */
export function openVideo(url) {
  const video = Object.assign(document.createElement("video"), { muted: true, preload: "auto", playsInline: true });
  return new Promise((resolve) => {
    video.addEventListener("loadeddata", () => resolve(video), { once: true });
    video.addEventListener("error", () => resolve(null), { once: true });
    video.src = url;
  });
}

/** Lets go of a video's connection. */
export function closeVideo(video) {
  video.removeAttribute("src");
  video.load();
}

function seek(video, seconds) {
  return new Promise((resolve) => {
    video.addEventListener("seeked", resolve, { once: true });
    video.currentTime = seconds;
  });
}
