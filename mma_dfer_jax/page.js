// The page: sends a video, shows its answer beside it, and seeks where the timeline is clicked. Nothing is built from strings
// of HTML, so that names of files are text.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const COLOURS = ["#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf",
  "#66c2a5", "#d2b48c", "#000080"];
const [video, still, answer, seen] = ["video", "still", "answer", "seen"].map(id => document.getElementById(id));
let setup = null, running = null, local = null;

function make(name, attributes = {}, ...inside) {
  const one = name.startsWith("svg:") ? document.createElementNS(SVG, name.slice(4)) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) one.setAttribute(key, value);
  one.append(...inside.filter(part => part !== null && part !== undefined));
  return one;
}
const percent = share => `${(100 * share).toFixed(1)} %`;
const ranked = probabilities => Object.entries(probabilities).sort((a, b) => b[1] - a[1]);
const reliable = one => one.top !== null && one.top !== undefined;

function fail(words) {
  answer.replaceChildren(make("div", {class: "error", role: "alert"}, words));
  seen.replaceChildren();
}

// ---- one video

function show(file) { // it stays on the page, and is this browser's own copy
  const before = local, moving = file.type.startsWith("image/");
  local = URL.createObjectURL(file);
  [video.hidden, still.hidden] = [moving, !moving];
  video.srcObject = null;
  video.muted = false;
  for (const one of [video, still]) one.removeAttribute("src");
  video.load();
  (moving ? still : video).src = local;
  if (before) URL.revokeObjectURL(before);
  document.getElementById("hint").hidden = true;
}

async function send(file) {
  stopLive();
  show(file);
  running?.abort();
  const mine = running = new AbortController();
  const bar = make("progress"), doing = make("p", {class: "small"}, "sending the video …");
  answer.replaceChildren(make("p", {class: "small"}, file.name), bar, doing);
  seen.replaceChildren();
  try {
    if (file.size > setup.max_mb * 2 ** 20) throw new Error(`The video is larger than ${setup.max_mb} MiB.`);
    const reply = await fetch(`answer?name=${encodeURIComponent(file.name)}`, {method: "POST", body: file, signal: mine.signal});
    if (!reply.ok) throw new Error(await reply.text());
    let last = null;
    for await (const line of lines(reply.body)) {
      last = JSON.parse(line);
      if (last.doing) doing.textContent = last.doing;
      if (last.share !== null && last.share !== undefined) bar.value = last.share; else bar.removeAttribute("value");
    }
    if (!last || !(last.answer || last.error)) throw new Error("The server ended before it answered.");
    if (last.error) fail(last.error); else shown(last.answer);
  } catch (error) {
    if (mine === running && error.name !== "AbortError") fail(error instanceof TypeError ? "The server does not answer." : error.message);
  }
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const {value, done} = await reader.read();
    const parts = (rest + (value ?? "")).split("\n");
    rest = parts.pop();
    yield* parts;
    if (done) return;
  }
}

function headline(one) {
  const bars = make("div", {class: reliable(one) ? "bars" : "bars withheld"});
  for (const [name, share] of ranked(one.probabilities)) {
    const fill = make("div", {class: "fill"});
    fill.style.width = percent(share).replace(" ", "");
    bars.append(make("div", {class: name === one.top ? "row first" : "row", "data-class": name}, make("span", {}, name),
      make("div", {class: "track"}, fill), make("span", {class: "percent"}, percent(share))));
  }
  const reasons = one.reasons ?? [], warnings = one.warnings ?? [];
  return [
    make("p", {class: "top"}, reliable(one) ? one.top : "No answer"),
    reliable(one) ? null : make("div", {class: "warnings reasons", role: "note"}, make("p", {}, "These values are not to be trusted:"),
      ...reasons.map(words => make("p", {}, words))),
    bars,
    warnings.length ? make("div", {class: "warnings", role: "note"}, ...warnings.map(words => make("p", {}, words))) : null,
  ].filter(Boolean);
}

function shown(found) {
  const one = found.json;
  const face = one.frames_with_face === null ? "" : ` a face in ${one.frames_with_face},`;
  const sound = one.sound ? `${one.seconds_of_sound.toFixed(2)} s of sound` : "no sound";
  answer.replaceChildren(make("p", {class: "small name"}, one.clip), ...headline(one), make("p", {class: "small"},
    `${one.seconds.toFixed(2)} s, ${one.frames} frames,${face} ${sound}; answered in ${found.took.toFixed(1)} s, and the server's copy is deleted`));
  seen.replaceChildren(...timelines(one, found.seen.persons), ...pictures(found.seen), json(one));
}

// ---- over time

// For each window the seconds for which it speaks: those nearer to its middle than to that of any other.
function spans(windows) {
  const middles = windows.map(one => (one.start + one.end) / 2);
  return windows.map((one, i) => [i ? Math.max(one.start, (middles[i - 1] + middles[i]) / 2) : one.start,
    i + 1 < windows.length ? Math.min(one.end, (middles[i] + middles[i + 1]) / 2) : one.end]);
}

function timelines(one, faces) {
  if (!one.windows) return [make("h2", {}, "Over time"),
    make("p", {class: "small"}, `No timeline: the video is no longer than one window of ${setup.window} s.`)];
  video.ontimeupdate = () => marks.forEach(mark => mark(video.currentTime));
  const persons = [...new Set(one.windows.map(window => window.person))], marks = [];
  return persons.flatMap((person, i) => timeline(one, one.windows.filter(window => window.person === person),
    person ? `Person ${person} over time` : "Over time", one.summaries[i], faces[i], marks));
}

function timeline(one, windows, title, summary, face, marks) {
  const names = Object.keys(one.probabilities), of = spans(windows), length = one.seconds;
  const hatch = make("svg:pattern", {id: "hatch", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)"},
    make("svg:rect", {width: 3, height: 6, fill: "var(--hatch)"}));
  const drawing = make("svg:svg", {viewBox: "0 0 1000 220", preserveAspectRatio: "none", "aria-hidden": "true"}, make("svg:defs", {}, hatch));
  const x = seconds => 1000 * seconds / length;
  windows.forEach((window, i) => {
    let y = 220;
    const [start, end] = of[i].map(x);
    names.forEach((name, k) => {
      const height = 220 * window.probabilities[name];
      y -= height;
      drawing.append(make("svg:rect", {x: start, y, width: end - start, height, fill: COLOURS[k % COLOURS.length], opacity: reliable(window) ? 0.9 : 0.25}));
    });
    if (!reliable(window)) drawing.append(make("svg:rect", {class: "unreliable", x: start, y: 0, width: end - start, height: 220, fill: "url(#hatch)"}));
  });
  const here = make("svg:line", {y1: 0, y2: 220, stroke: "var(--ink)", "stroke-width": 2, "vector-effect": "non-scaling-stroke"});
  drawing.append(here);
  const value = make("p", {class: "value"});
  const slider = make("input", {type: "range", min: 0, max: length.toFixed(3), step: 0.1, value: 0, "aria-label": "moment of the video, seconds"});
  const words = seconds => { // a person is not always there
    const window = windows[of.findIndex(([start, end]) => seconds >= start && (seconds < end || end >= length))];
    if (!window) return `${seconds.toFixed(1)} s: not there`;
    const most = ranked(window.probabilities).slice(0, 3).map(([name, share]) => `${name} ${percent(share)}`).join(" · ");
    return `${seconds.toFixed(1)} s: ${reliable(window) ? most : `no answer (${(window.reasons ?? []).join("; ")})`}`;
  };
  const mark = seconds => {
    for (const end of ["x1", "x2"]) here.setAttribute(end, x(seconds));
    slider.value = seconds;
    slider.setAttribute("aria-valuetext", words(seconds));
    value.textContent = words(seconds);
  };
  const seconds = event => length * (event.clientX - drawing.getBoundingClientRect().left) / drawing.getBoundingClientRect().width;
  const seek = to => { mark(to); if (!video.hidden) video.currentTime = to; };
  drawing.addEventListener("click", event => seek(seconds(event)));
  drawing.addEventListener("mousemove", event => { value.textContent = words(Math.min(Math.max(seconds(event), 0), length)); });
  drawing.addEventListener("mouseleave", () => mark(Number(slider.value)));
  slider.addEventListener("input", () => seek(Number(slider.value)));
  marks.push(seconds => mark(Math.min(seconds, length)));
  mark(0);
  const legend = make("p", {class: "legend"}, ...names.map((name, k) => {
    const square = make("i");
    square.style.background = COLOURS[k % COLOURS.length];
    return make("span", {}, square, name);
  }), windows.every(reliable) ? null : make("span", {}, "hatched: no answer"));
  const head = make("tr", {}, ...["start, s", "end, s", "answer", ...names].map(name => make("th", {scope: "col"}, name)));
  const table = make("table", {}, make("caption", {class: "small"}, "probabilities of each window"), make("thead", {}, head),
    make("tbody", {}, ...windows.map(window => make("tr", {},
      ...[window.start.toFixed(2), window.end.toFixed(2), window.top ?? "–", ...names.map(name => percent(window.probabilities[name]))].map(text => make("td", {}, text))))));
  return [make("h2", {}, face ? make("img", {class: "face", alt: "", src: face}) : "", `${title}: ${windows.length} windows of ${one.window} s, one every ${one.hop} s; click to go there`),
    make("p", {class: "small"}, summary), make("div", {class: "timeline"}, drawing, slider, make("p", {class: "small ends"},
      make("span", {}, "0 s"), make("span", {}, `${length.toFixed(1)} s`))), value, legend,
    make("details", {class: "table"}, make("summary", {}, "The timeline as a table"), make("div", {class: "scroll", tabindex: 0}, table))];
}

function pictures(of) {
  const found = [], weighed = of.weights.length > 0, kept = of.weights.filter(weight => weight > 0).length;
  const counts = !weighed ? "" : `; below each what it counts, 1 on average${kept < of.weights.length ? `; ${kept} were kept` : ""}`;
  const counted = (picture, weight) => make("figure", {class: weight > 0 ? "" : "left"}, picture,
    make("figcaption", {}, weight > 0 ? weight.toFixed(2) : "–"));
  if (of.frames) found.push(make("h2", {}, `What the model saw: ${of.frames.length} frames of ${of.size} x ${of.size} pixels, evenly spread${counts}`),
    make("div", {class: "strip"}, ...of.frames.map((src, i) => make("img", {alt: `frame ${i + 1}`, src}))
      .map((picture, i) => weighed ? counted(picture, of.weights[i]) : picture)));
  if (of.sound) {
    const padding = of.sound.heard < 0.95 * of.sound.seconds ? `; the last ${(of.sound.seconds - of.sound.heard).toFixed(2)} s are padding` : "";
    found.push(make("h2", {}, `What it heard: the first ${of.sound.seconds.toFixed(2)} s, log-mel in ${of.sound.bins} bins${padding}`),
      make("img", {class: "wide", alt: "spectrogram", src: of.sound.picture}));
  } else found.push(make("h2", {}, "What it heard"), make("p", {class: "small"}, "Nothing."));
  return found;
}

function json(one) {
  const text = JSON.stringify(one, null, 2), name = `${one.clip.replace(/\.[^.]*$/, "")}.json`;
  const link = make("a", {href: "#", download: name}, `save ${name}`);
  link.addEventListener("click", () => {
    link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
  return make("details", {class: "json"}, make("summary", {}, "The answer as JSON"), make("p", {}, link), make("pre", {tabindex: 0}, text));
}

// ---- camera

async function camera() {
  try {
    const stream = await navigator.mediaDevices.getUserMedia({video: {width: 640, height: 480}, audio: true});
    [video.hidden, still.hidden, video.muted, video.controls] = [false, true, true, false];
    video.srcObject = stream;
    await video.play();
    return stream;
  } catch (error) {
    fail(`The camera cannot be used: ${error.message}`);
    return null;
  }
}

function end(stream) {
  for (const track of stream.getTracks()) track.stop();
  video.srcObject = null;
  video.controls = true;
}

const recordButton = document.getElementById("record");
let recorder = null;
recordButton.addEventListener("click", async () => {
  if (recorder) return recorder.stop();
  stopLive();
  const stream = await camera();
  if (!stream) return;
  const parts = [], mine = recorder = new MediaRecorder(stream);
  recordButton.textContent = "Stop and answer";
  mine.ondataavailable = event => parts.push(event.data);
  mine.onstop = () => {
    recorder = null;
    recordButton.textContent = "Record";
    end(stream);
    send(new File(parts, "recording.webm", {type: mine.mimeType}));
  };
  mine.start();
});

// Live: a ring of the last window's frames and sound; every hop it is answered, unless the answer before is not there yet.
const liveButton = document.getElementById("live");
const FRAMES_A_SECOND = 12;
let live = null;
liveButton.addEventListener("click", () => live ? stopLive() : startLive());

async function startLive() {
  running?.abort();
  const stream = await camera();
  if (!stream) return;
  liveButton.setAttribute("aria-pressed", "true");
  liveButton.textContent = "Stop";
  seen.replaceChildren();
  answer.replaceChildren(make("p", {class: "empty"}, `The first answer comes after ${setup.window} s.`));
  const mine = live = {stream, frames: [], sound: [], taken: 0, started: performance.now(), latencies: [], dropped: 0, busy: false,
    context: new AudioContext()};
  const canvas = document.createElement("canvas"), pen = canvas.getContext("2d");
  await mine.context.audioWorklet.addModule("page_sound.js");
  if (live !== mine) return; // stopped meanwhile
  const blocks = new AudioWorkletNode(mine.context, "blocks");
  blocks.port.onmessage = event => mine.sound.push(event.data);
  mine.context.createMediaStreamSource(stream).connect(blocks).connect(mine.context.destination); // silent: it has no output
  const now = () => (performance.now() - mine.started) / 1000;
  mine.timers = [
    setInterval(() => {
      if (!video.videoWidth) return;
      [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
      pen.drawImage(video, 0, 0);
      mine.frames.push([now(), canvas.toDataURL("image/jpeg", 0.85).split(",")[1]]);
      mine.taken += 1;
      while (mine.frames[0][0] < now() - setup.window) mine.frames.shift();
      const most = setup.window * mine.context.sampleRate;
      while (mine.sound.length > 1 && (mine.sound.length - 1) * mine.sound[0].length > most) mine.sound.shift();
    }, 1000 / FRAMES_A_SECOND),
    setInterval(() => now() >= setup.window && hop(mine, now()), 1000 * setup.hop),
  ];
}

async function hop(mine, end) {
  if (mine.busy) return void (mine.dropped += 1);
  mine.busy = true;
  const started = performance.now(), begin = mine.frames[0]?.[0] ?? 0;
  const sound = new Int16Array(mine.sound.flatMap(part => Array.from(part, value => Math.max(-32768, Math.min(32767, Math.round(32768 * value))))));
  const bytes = new Uint8Array(sound.buffer), text = [];
  for (let i = 0; i < bytes.length; i += 8192) text.push(String.fromCharCode(...bytes.subarray(i, i + 8192)));
  const body = JSON.stringify({frames: mine.frames.map(([, jpeg]) => jpeg), times: mine.frames.map(([time]) => time - begin), end: end - begin,
    sound: btoa(text.join("")), rate: sound.length ? mine.context.sampleRate : null});
  try {
    const one = await (await fetch("live", {method: "POST", body})).json();
    if (mine !== live) return;
    if (one.error) return fail(one.error);
    if (!one.probabilities) return void (mine.dropped += 1);
    mine.latencies.push(performance.now() - started);
    const sorted = [...mine.latencies].sort((a, b) => a - b), of = share => Math.round(sorted[Math.floor(share * (sorted.length - 1))]);
    answer.replaceChildren(...headline(one), make("p", {class: "small live"}, `live: ${(mine.taken / end).toFixed(1)} frames a second, ` +
      `an answer takes ${of(0.5)} ms (half of them), ${of(0.95)} ms (95 %), ${mine.dropped} of ${mine.dropped + mine.latencies.length} windows dropped`));
  } catch { fail("The server does not answer."); stopLive(); } finally { mine.busy = false; }
}

function stopLive() {
  if (!live) return;
  live.timers.forEach(clearInterval);
  live.context.close();
  end(live.stream);
  live = null;
  liveButton.setAttribute("aria-pressed", "false");
  liveButton.textContent = "Live camera";
}

// ---- what starts it

const file = document.getElementById("file"), drop = document.getElementById("drop");
file.addEventListener("change", () => { if (file.files.length) send(file.files[0]); file.value = ""; });
for (const [kind, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  drop.addEventListener(kind, event => {
    event.preventDefault();
    drop.classList.toggle("over", over);
    if (kind === "drop" && event.dataTransfer.files.length) send(event.dataTransfer.files[0]);
  });
}
fetch("setup").then(reply => reply.json()).then(found => {
  setup = found;
  for (const id of ["facts", "max_mb", "max_seconds"]) document.getElementById(id).textContent = setup[id];
}).catch(() => fail("The server does not answer."));
