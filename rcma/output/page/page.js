"use strict";
{
  const TARGETS = ["valence", "arousal"];
  const SHOWN_AS = { face: "face", audio: "voice", text: "words" };
  const RELATIVE = "voice_relative"; // The name of vocal activation says that it is relative to its recording.
  const MARGIN = { l: 58, r: 16 };
  const PLANE_MARGIN = { l: 52, r: 12, t: 8, b: 44 };
  const TILE = 50;
  const UNSURE = 0.5;
  const SPACING = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200];
  const CJK = /[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef]/;
  const CONFIG = { displayModeBar: false, showTips: false };

  const $ = (id) => document.getElementById(id);
  const read = (id) => JSON.parse($(id).textContent);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  const fixed = (value, digits = 2) => (value == null ? "–" : value.toFixed(digits).replace("-", "−"));

  function make(tag, properties = {}, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  }

  function clock(seconds, digits = 2) {
    const minutes = Math.floor(seconds / 60 + 1e-9);
    const rest = Math.max(0, seconds - 60 * minutes).toFixed(digits).padStart(digits ? digits + 3 : 2, "0");
    return minutes < 60 ? `${minutes}:${rest}` : `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, "0")}:${rest}`;
  }

  /** Last index whose value is at most `wanted`, -1 where there is none. */
  function lastUpTo(sorted, wanted, value = (item) => item) {
    let [low, high] = [0, sorted.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (value(sorted[middle]) <= wanted) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  }

  const videos = read("summary");
  let number = -1; // of the chosen video
  let data = null; // all of it
  let player = null;
  let range = [0, 1]; // seconds that the curves show
  let current = { time: 0, index: -1, word: -1, said: null };
  const timeCharts = []; // { box, chart, cursor }

  // ---- Players: now(), seek(time), toggle(), playing(), stop(). Times are on the video's clock.

  function videoPlayer(url, offset, failed) {
    const video = $("video");
    const ending = new AbortController();
    let frame = 0;
    const now = () => video.currentTime - offset;
    const tell = () => show(now());
    // The time of the very frame that is on the screen, where the browser tells.
    const follow = (_, presented) => {
      show(presented.mediaTime - offset);
      frame = video.requestVideoFrameCallback(follow);
    };
    for (const name of ["timeupdate", "seeking", "seeked"]) video.addEventListener(name, tell, { signal: ending.signal });
    video.addEventListener("error", failed, { signal: ending.signal });
    if (video.requestVideoFrameCallback) frame = video.requestVideoFrameCallback(follow);
    video.src = url;
    return {
      now,
      // A little later than the frame begins: browsers round times down.
      seek: (time) => { video.currentTime = Math.max(0, time + offset + 5e-4); },
      toggle: () => (video.paused ? video.play() : video.pause()),
      playing: () => !video.paused,
      stop: () => {
        ending.abort();
        if (frame) video.cancelVideoFrameCallback(frame);
        video.pause();
        video.removeAttribute("src");
        video.load();
        if (url.startsWith("blob:")) URL.revokeObjectURL(url);
      },
    };
  }

  function sliderPlayer(end) {
    const [slider, play] = [$("slider"), $("play")];
    const ending = new AbortController();
    let [time, running, before] = [0, 0, 0];
    const tell = () => {
      slider.value = time;
      slider.setAttribute("aria-valuetext", clock(time));
      show(time);
    };
    const say = () => { play.textContent = running ? "Pause" : "Play"; };
    const pause = () => { cancelAnimationFrame(running); running = 0; say(); };
    const advance = (stamp) => {
      time = Math.min(end, time + (stamp - before) / 1000);
      before = stamp;
      running = requestAnimationFrame(advance);
      if (time >= end) pause();
      tell();
    };
    const toggle = () => {
      if (running) return pause();
      if (time >= end) time = 0;
      before = performance.now();
      running = requestAnimationFrame(advance);
      say();
    };
    slider.max = end;
    slider.value = 0;
    slider.addEventListener("input", () => { time = Number(slider.value); tell(); }, { signal: ending.signal });
    slider.addEventListener("keydown", keys, { signal: ending.signal });
    play.addEventListener("click", toggle, { signal: ending.signal });
    say();
    return {
      now: () => time,
      seek: (wanted) => { time = clamp(wanted, 0, end); tell(); },
      toggle,
      playing: () => running !== 0,
      stop: () => { pause(); ending.abort(); },
    };
  }

  function makePlayer() {
    const source = data.source;
    const playsVideo = source !== null;
    $("video").hidden = !playsVideo;
    $("in-place").hidden = playsVideo;
    if (!playsVideo) {
      $("no-video").textContent = data.faces.picture
        ? "The video is not available; this is the face crop that the model received."
        : "The video is not available, and no face was found.";
      return sliderPlayer(data.end);
    }
    const failed = () => {
      player.stop();
      data.source = null;
      player = makePlayer();
      $("no-video").textContent = "The video was moved, or this browser cannot play it.";
      player.seek(0);
    };
    if ("link" in source) return videoPlayer(source.link, source.offset, failed);
    const bytes = Uint8Array.from(atob($(source.block).textContent), (letter) => letter.charCodeAt(0));
    return videoPlayer(URL.createObjectURL(new Blob([bytes], { type: "video/mp4" })), 0, failed);
  }

  // ---- Where a time lies on the curves. Margins and range are ours, so no more than the width is to be known.

  const plotWidth = (box) => box.clientWidth - MARGIN.l - MARGIN.r;
  const column = (box, time) => MARGIN.l + ((time - range[0]) / (range[1] - range[0])) * plotWidth(box);

  function ticks(box) {
    const most = Math.max(2, plotWidth(box) / 75);
    const length = range[1] - range[0];
    const spacing = SPACING.find((step) => length / step <= most) ?? Math.ceil(length / most / 3600) * 3600;
    const values = [];
    for (let k = Math.ceil(range[0] / spacing); k * spacing <= range[1] + 1e-9; k++) values.push(k * spacing);
    const digits = spacing < 1 ? 1 : 0;
    const text = data.end < 60 ? (value) => `${value.toFixed(digits)} s` : (value) => clock(value, digits);
    return { "xaxis.tickvals": values, "xaxis.ticktext": values.map(text) };
  }

  function setRange(start, end) {
    const length = clamp(end - start, Math.min(0.2, data.end), data.end);
    const first = clamp(start, 0, data.end - length);
    range = [first, first + length];
    layOut();
  }

  function zoom(factor) {
    const centre = current.time >= range[0] && current.time <= range[1] ? current.time : (range[0] + range[1]) / 2;
    const share = (centre - range[0]) / (range[1] - range[0]);
    const length = (range[1] - range[0]) * factor;
    setRange(centre - share * length, centre + (1 - share) * length);
  }

  /** Everything that depends on the width of the page or on the range. */
  function layOut() {
    for (const { box, chart } of timeCharts) {
      if (box.clientWidth) Plotly.relayout(chart, { width: box.clientWidth, "xaxis.range": [...range], ...ticks(box) });
    }
    drawStrip();
    place();
  }

  // ---- Charts.

  function baseLayout() {
    const axis = { color: colour("quiet"), gridcolor: colour("grid"), linecolor: colour("line"), zerolinecolor: colour("line") };
    return {
      axis,
      layout: {
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, autosize: false, clickanywhere: true,
        font: { family: "system-ui, sans-serif", size: 12, color: colour("ink") },
        hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("ink") } },
        dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
      },
    };
  }

  function timeLayout(box, height, axes) {
    const { axis, layout } = baseLayout();
    const { "xaxis.tickvals": tickvals, "xaxis.ticktext": ticktext } = ticks(box);
    const x = { ...axis, range: [...range], tickvals, ticktext, showgrid: true, zeroline: false, unifiedhovertitle: { text: "%{x:.2f} s" } };
    return { ...layout, width: box.clientWidth, height, hovermode: "x unified", margin: { ...MARGIN, t: 10, b: 26 }, xaxis: x, ...axes(axis) };
  }

  function timeChart(box, traces, layout) {
    const chart = make("div", { className: "chart" });
    const cursor = make("div", { className: "mark cursor" });
    box.replaceChildren(chart, cursor);
    Plotly.newPlot(chart, traces, layout, CONFIG);
    cursor.style.height = `${layout.height - layout.margin.t - layout.margin.b}px`;
    chart.on("plotly_click", (event) => seek(event.xvals[0]));
    chart.on("plotly_relayout", (change) => {
      // Zoomed by hand: the other charts follow. What layOut sets comes as one array and is left alone.
      if ("xaxis.range[0]" in change) setRange(change["xaxis.range[0]"], change["xaxis.range[1]"]);
    });
    chart.on("plotly_doubleclick", () => { setRange(0, data.end); return false; });
    timeCharts.push({ box, chart, cursor, top: layout.margin.t });
    return chart;
  }

  /** Curves of one point would not be seen. */
  const mode = () => (data.time.length < 40 ? "lines+markers" : "lines");

  /** Outlines around each stretch of frames on which the models' disagreement is known. */
  function spreadBand(target) {
    const [values, spread] = [data.values[target], data.spread[target]];
    const band = { x: [], y: [] };
    let [times, upper, lower] = [[], [], []];
    const close = () => {
      if (times.length) {
        band.x.push(...times, ...times.slice().reverse(), times[0], null);
        band.y.push(...upper, ...lower.slice().reverse(), upper[0], null);
      }
      [times, upper, lower] = [[], [], []];
    };
    data.time.forEach((time, k) => {
      if (values[k] == null || spread[k] == null) return close();
      times.push(time);
      upper.push(Math.min(1, values[k] + spread[k]));
      lower.push(Math.max(-1, values[k] - spread[k]));
    });
    close();
    return band;
  }

  function curves() {
    const traces = [];
    for (const target of data.spread ? TARGETS : []) {
      traces.push({
        ...spreadBand(target), mode: "lines", fill: "toself", line: { width: 0 }, fillcolor: colour(target), opacity: 0.22,
        hoverinfo: "skip",
      });
    }
    for (const [name, values] of Object.entries(data.experts)) {
      for (const target of TARGETS.filter((target) => values[target].some((value) => value != null))) {
        traces.push({
          x: data.time, y: values[target], mode: mode(), connectgaps: false, opacity: 0.45,
          line: { color: colour(target), width: 1.2 }, hovertemplate: `${target}, ${name} alone %{y:.2f}<extra></extra>`,
        });
      }
    }
    for (const target of TARGETS) {
      if (data.labels) {
        traces.push({
          x: data.time, y: data.labels[target], mode: mode(), connectgaps: false, opacity: 0.75,
          line: { color: colour(target), width: 1.8, dash: "5px 4px" }, hovertemplate: `${target}, label %{y:.2f}<extra></extra>`,
        });
      }
    }
    for (const target of TARGETS) {
      traces.push({
        x: data.time, y: data.values[target], mode: mode(), connectgaps: false,
        line: { color: colour(target), width: 2.4 }, hovertemplate: `<b>${target} %{y:.2f}</b><extra></extra>`,
      });
    }
    return traces;
  }

  function bands(modalities) {
    const traces = [];
    modalities.forEach((name, row) => {
      const band = { mode: "lines", yaxis: "y2", hoverinfo: "skip" };
      traces.push({ ...band, x: [0, data.end], y: [row, row], line: { color: colour("there"), width: 9 } });
      const spans = data.missing[name];
      const gaps = { x: spans.flatMap(([start, end]) => [start, end, null]), y: spans.flatMap(() => [row, row, null]) };
      traces.push({ ...band, ...gaps, line: { color: colour("missing"), width: 9 }, connectgaps: false });
    });
    return traces;
  }

  function drawTime() {
    const box = $("time");
    const modalities = Object.keys(data.missing);
    const bandHeight = 17 * modalities.length;
    const plotted = 250 + bandHeight;
    const share = modalities.length ? (bandHeight + 14) / plotted : 0;
    const layout = timeLayout(box, plotted + 36, (axis) => ({
      yaxis: { ...axis, domain: [share, 1], range: [-1.04, 1.04], fixedrange: true, dtick: 0.5, zeroline: true, zerolinewidth: 1.5 },
      yaxis2: {
        ...axis, domain: [0, bandHeight / plotted], range: [modalities.length - 0.5, -0.5], fixedrange: true, showgrid: false,
        zeroline: false, tickvals: modalities.map((_, row) => row), ticktext: modalities.map((name) => SHOWN_AS[name]),
      },
    }));
    layout.xaxis.anchor = modalities.length ? "y2" : "y";
    const chart = timeChart(box, [...curves(), ...bands(modalities)], layout);
    const entry = timeCharts.at(-1);
    // Pixels from the top of the box for a value.
    entry.row = (value) => layout.margin.t + (plotted * (1 - share) * (1.04 - value)) / 2.08;
    entry.points = TARGETS.map((target) => {
      const point = make("div", { className: "mark point" });
      point.style.color = colour(target);
      chart.after(point);
      return point;
    });
    $("time").setAttribute("aria-valuemax", data.end);
  }

  /** Said of a voice of which no more is known than its activation. */
  const relative = (name) => (name === "audio" && RELATIVE in data.experts && !("audeering" in data.experts) ? " (relative)" : "");

  const stepColour = (step) => colour(`step-${1 + (step % 4)}`);

  function drawSteps() {
    const names = Object.keys(data.changes);
    $("changes").hidden = names.length === 0;
    $("steps").replaceChildren();
    const highest = names.flatMap((name) => data.changes[name]).flatMap((step) => step.values).reduce((a, b) => Math.max(a, b ?? 0), 0) || 1;
    const boxes = names.map((name) => {
      const key = make("p", { className: "quiet key" });
      data.changes[name].forEach((step, k) => {
        const line = make("i", { className: "line" });
        line.style.borderColor = stepColour(k);
        key.append(make("span", {}, line, `step ${k + 1}: ${fixed(step.mean, 3)} on average`));
      });
      const box = make("div", { className: "time" });
      $("steps").append(make("div", {}, make("h4", { textContent: SHOWN_AS[name] }), key, box));
      return box;
    });
    names.forEach((name, place) => {
      const traces = data.changes[name].map((step, k) => ({
        x: data.time, y: step.values, mode: mode(), connectgaps: false, line: { color: stepColour(k), width: 1.8 },
        hovertemplate: `step ${k + 1}: %{y:.3f}<extra></extra>`,
      }));
      const layout = timeLayout(boxes[place], 150, (axis) => ({ yaxis: { ...axis, range: [0, highest * 1.05], fixedrange: true, nticks: 4 } }));
      timeChart(boxes[place], traces, layout);
    });
  }

  function drawPlane() {
    const box = $("plane").parentElement;
    const { axis, layout } = baseLayout();
    const side = box.clientWidth - PLANE_MARGIN.l - PLANE_MARGIN.r;
    const ramp = [colour("there"), colour("valence")];
    document.documentElement.style.setProperty("--from", ramp[0]);
    document.documentElement.style.setProperty("--to", ramp[1]);
    const shared = { range: [-1.06, 1.06], fixedrange: true, tickvals: [-1, -0.5, 0, 0.5, 1], zeroline: true, zerolinewidth: 2 };
    const trajectory = {
      x: data.values.valence, y: data.values.arousal, mode: "lines+markers", connectgaps: false, customdata: data.time,
      line: { color: colour("valence"), width: 1 }, opacity: 0.8,
      marker: { size: 5, color: data.time, colorscale: [[0, ramp[0]], [1, ramp[1]]], showscale: false },
      hovertemplate: "%{customdata:.2f} s<br>valence %{x:.2f}<br>arousal %{y:.2f}<extra></extra>",
    };
    const labels = {
      x: data.labels?.valence, y: data.labels?.arousal, mode: "lines", connectgaps: false, hoverinfo: "skip",
      line: { color: colour("quiet"), width: 1.2, dash: "dot" },
    };
    Plotly.react($("plane"), data.labels ? [labels, trajectory] : [trajectory], {
      ...layout, clickanywhere: false, dragmode: false, hovermode: "closest", margin: PLANE_MARGIN,
      width: box.clientWidth, height: side + PLANE_MARGIN.t + PLANE_MARGIN.b,
      xaxis: { ...axis, ...shared, title: { text: "negative ← valence → positive", standoff: 6 } },
      yaxis: { ...axis, ...shared, title: { text: "calm ← arousal → excited", standoff: 4 } },
    }, CONFIG);
  }

  /** Puts a mark at a point of the plane; nowhere, if there is none. */
  function placeInPlane(mark, valence, arousal) {
    const side = $("plane").parentElement.clientWidth - PLANE_MARGIN.l - PLANE_MARGIN.r;
    const known = valence != null && arousal != null;
    mark.style.visibility = known ? "visible" : "hidden";
    if (!known) return;
    const [x, y] = [PLANE_MARGIN.l + (side * (valence + 1.06)) / 2.12, PLANE_MARGIN.t + (side * (1.06 - arousal)) / 2.12];
    mark.style.transform = `translate(${x}px, ${y}px)`;
  }

  // ---- Faces.

  function showFace(element, index) {
    const { picture, columns, rows, there } = data.faces;
    element.classList.toggle("nobody", !there[index]);
    element.style.backgroundImage = there[index] ? "var(--faces)" : "";
    if (!picture || !there[index]) return;
    const share = (place, places) => (places > 1 ? (100 * place) / (places - 1) : 0);
    element.style.backgroundSize = `${100 * columns}% ${100 * rows}%`;
    element.style.backgroundPosition = `${share(index % columns, columns)}% ${share(Math.floor(index / columns), rows)}%`;
  }

  /** As many faces as fit beside each other, each at its time. */
  function drawStrip() {
    const strip = $("strip");
    const times = data.faces.time;
    const tiles = [];
    let free = -Infinity;
    times.forEach((time, index) => {
      const x = column(strip, time);
      if (x < MARGIN.l || x > strip.clientWidth - MARGIN.r + 1) return;
      const middle = clamp(x, MARGIN.l + TILE / 2, strip.clientWidth - MARGIN.r - TILE / 2);
      if (middle < free) return;
      free = middle + TILE;
      const tile = make("i", { title: `${clock(time)}${data.faces.there[index] ? "" : ", no face"}` });
      tile.style.left = `${middle}px`;
      tile.dataset.time = time;
      showFace(tile, index);
      tiles.push(tile);
    });
    strip.replaceChildren(...tiles);
  }

  // ---- Words.

  const gapBetween = (before, after) => (CJK.test(before.at(-1)) && CJK.test(after[0]) ? "" : " ");

  function drawWords() {
    const box = $("words");
    const pieces = [];
    data.words.forEach(([text, start, end, probability], index) => {
      const sure = probability == null ? "" : `, probability ${probability.toFixed(2)}`;
      const button = make("button", {
        type: "button", textContent: text, tabIndex: index ? -1 : 0, title: `${clock(start)} to ${clock(end)}${sure}`,
        className: probability != null && probability < UNSURE ? "unsure" : "", dir: "auto",
      });
      button.dataset.index = index;
      pieces.push(index ? gapBetween(data.words[index - 1][0], text) : "", button);
    });
    box.classList.toggle("long", data.words.length > 150);
    box.replaceChildren(...(pieces.length ? pieces : [make("p", { className: "quiet", textContent: "No words were recognised." })]));
  }

  const wordButtons = () => $("words").getElementsByTagName("button");

  function lightWord(index) {
    const buttons = wordButtons();
    const before = buttons[current.word];
    before?.removeAttribute("aria-current");
    const button = buttons[index];
    if (!button) return;
    button.setAttribute("aria-current", "true");
    // Within its box only: the page itself does not move under the reader.
    const box = $("words");
    const top = button.offsetTop - box.offsetTop;
    if (top < box.scrollTop || top + button.offsetHeight > box.scrollTop + box.clientHeight) {
      box.scrollTop = top - box.clientHeight / 3;
    }
  }

  /** The word being spoken among its neighbours, as in subtitles; `said` is the last one that has begun. */
  function showSaid(said, word) {
    const first = Math.max(0, said - 4);
    const around = said < 0 ? [] : data.words.slice(first, said + 4);
    $("said").replaceChildren(...around.flatMap(([text], k) => {
      const gap = k ? gapBetween(around[k - 1][0], text) : "";
      return [gap, first + k === word ? make("mark", { textContent: text }) : text];
    }));
  }

  // ---- What follows the video.

  function show(time) {
    current.time = clamp(time, 0, data.end);
    if (player?.playing() && range[1] - range[0] < data.end && (current.time > range[1] || current.time < range[0])) {
      setRange(current.time, current.time + range[1] - range[0]);
    }
    place();
    const index = Math.max(0, lastUpTo(data.time, current.time + 1e-3));
    const said = lastUpTo(data.words, current.time + 1e-3, (word) => word[1]);
    const word = said >= 0 && current.time < data.words[said][2] ? said : -1;
    if (word !== current.word) lightWord(word);
    if (word !== current.word || said !== current.said) showSaid(said, word);
    Object.assign(current, { word, said });
    $("clock").textContent = clock(current.time);
    if (!$("in-place").hidden) showFaceNow();
    if (index === current.index) return;
    current.index = index;
    showNumbers(index);
  }

  function showNumbers(index) {
    const at = (columns, target) => columns?.[target][index];
    $("frame").textContent = `frame ${data.frame[index] + 1} of ${videos[number].frames}`;
    for (const target of TARGETS) {
      $(`now-${target}`).textContent = fixed(at(data.values, target));
      const spread = at(data.spread, target);
      $(`spread-${target}`).textContent = spread == null ? "" : `± ${fixed(spread)}`;
      $(`label-${target}`).textContent = fixed(at(data.labels, target));
    }
    for (const chip of $("modalities").children) {
      const spans = data.missing[chip.dataset.name];
      const span = spans[lastUpTo(spans, data.time[index] + 1e-4, (pair) => pair[0])];
      const missing = span !== undefined && data.time[index] < span[1] - 1e-4;
      chip.classList.toggle("missing", missing);
      chip.textContent = `${missing ? "no " : ""}${SHOWN_AS[chip.dataset.name]}${relative(chip.dataset.name)}`;
    }
    const slider = $("time");
    slider.setAttribute("aria-valuenow", data.time[index]);
    const values = TARGETS.map((target) => `${target} ${fixed(at(data.values, target))}`).join(", ");
    slider.setAttribute("aria-valuetext", `${clock(data.time[index])}: ${values}`);
    place();
  }

  function showFaceNow() {
    const index = Math.max(0, lastUpTo(data.faces.time, current.time + 1e-3));
    showFace($("face"), index);
    $("face").setAttribute("aria-label", data.faces.there[index] ? `Face at ${clock(data.faces.time[index])}` : "No face");
  }

  /** Marks over the charts. */
  function place() {
    const inside = current.time >= range[0] - 1e-6 && current.time <= range[1] + 1e-6;
    for (const { box, cursor, points, row, top } of timeCharts) {
      const x = column(box, current.time);
      cursor.style.visibility = inside ? "visible" : "hidden";
      cursor.style.transform = `translate(${x}px, ${top}px)`;
      points?.forEach((point, k) => {
        const value = data.values[TARGETS[k]][current.index];
        point.style.visibility = inside && value != null ? "visible" : "hidden";
        if (value != null) point.style.transform = `translate(${x}px, ${row(value)}px)`;
      });
    }
    placeInPlane($("plane-now"), data.values.valence[current.index], data.values.arousal[current.index]);
    placeInPlane($("plane-label"), data.labels?.valence[current.index], data.labels?.arousal[current.index]);
  }

  /** Goes to the frame that is shown at a time. */
  function seek(time) {
    player.seek(data.time[Math.max(0, lastUpTo(data.time, clamp(time, 0, data.end) + 1e-6))]);
  }

  /** Goes to the first frame during a word: the one before it may be shown when the word starts. */
  function seekWord(index) {
    const [, start, end] = data.words[index];
    const first = data.time[lastUpTo(data.time, start - 1e-3) + 1];
    seek(first < end ? first : start);
  }

  function keys(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const index = Math.max(0, lastUpTo(data.time, player.now() + 1e-3));
    const last = data.time.length - 1;
    const step = (by) => data.time[clamp(index + by, 0, last)];
    const leap = (range[1] - range[0]) / 10;
    const moves = {
      ArrowLeft: () => seek(step(-1)), ArrowDown: () => seek(step(-1)), ArrowRight: () => seek(step(1)), ArrowUp: () => seek(step(1)),
      PageUp: () => seek(current.time + leap), PageDown: () => seek(current.time - leap),
      Home: () => seek(0), End: () => seek(data.time[last]), " ": () => player.toggle(),
    };
    if (!(event.key in moves)) return;
    event.preventDefault();
    moves[event.key]();
  }

  // ---- One video.

  function drawCharts() {
    for (const { chart } of timeCharts) Plotly.purge(chart);
    timeCharts.length = 0;
    drawPlane();
    drawTime();
    drawSteps();
    drawStrip();
    place();
  }

  function choose(chosen) {
    if (chosen === number) return;
    player?.stop();
    player = null;
    number = chosen;
    data = read(`video-${number}`);
    range = [0, data.end];
    current = { time: 0, index: -1, word: -1, said: null };
    const { name } = videos[number];
    $("chosen").hidden = false;
    $("chosen").classList.toggle("unlabelled", !data.labels);
    $("chosen").classList.toggle("single", !data.spread);
    $("chosen").classList.toggle("one-model", !Object.keys(data.experts).length);
    $("name").textContent = name;
    $("notes").replaceChildren(...data.notes.map((note) => make("li", { textContent: note })));
    if (data.source?.link) $("notes").append(make("li", { textContent: "The video is not embedded in this page; it is played from its file." }));
    $("modalities").replaceChildren(...Object.keys(data.missing).map((modality) => {
      const chip = make("li");
      chip.dataset.name = modality;
      return chip;
    }));
    document.documentElement.style.setProperty("--faces", data.faces.picture ? `url(${data.faces.picture})` : "none");
    const seen = data.faces.there.filter(Boolean).length;
    $("strip").setAttribute("aria-label", seen ? `Faces over time: seen in ${seen} of ${data.faces.there.length} pictures` : "Faces over time: none");
    drawWords();
    drawCharts();
    player = makePlayer();
    show(0);
    for (const row of $("rows").children) {
      const here = Number(row.dataset.number) === number;
      row.toggleAttribute("data-chosen", here);
      const link = row.querySelector("a");
      if (here) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
      if (here) scrollToRow(row);
    }
  }

  // ---- The list.

  const LIST_COLUMNS = [
    { title: "video", value: (video) => video.name },
    { title: "duration", value: (video) => video.duration, text: (value) => clock(value, 1) },
    { title: "frames", value: (video) => video.frames, text: String },
    ...TARGETS.map((target) => ({ title: `mean ${target}`, value: (video) => video.mean[target], text: fixed })),
    ...Object.keys(SHOWN_AS).map((name) => ({
      title: `${SHOWN_AS[name]} %`, value: (video) => video.present[name] ?? null, text: (value) => fixed(value, 0),
    })),
    ...TARGETS.map((target) => ({ title: `CCC ${target}`, value: (video) => video.ccc?.[target] ?? null, text: fixed })),
  ].filter(({ title, value }) => !/%|CCC/.test(title) || videos.some((video) => value(video) !== null));

  const hash = (video) => `#${encodeURIComponent(video.name)}`;

  function drawList() {
    $("rows").append(...videos.map((video, index) => {
      const row = make("tr");
      row.dataset.number = index;
      for (const { value, text } of LIST_COLUMNS) {
        if (!text) row.append(make("td", {}, make("a", { href: hash(video), textContent: video.name, title: video.name, dir: "auto" })));
        else row.append(make("td", { textContent: value(video) === null ? "–" : text(value(video)) }));
      }
      return row;
    }));
    LIST_COLUMNS.forEach((listColumn) => {
      const head = make("th", { scope: "col" }, make("button", { type: "button", textContent: listColumn.title, title: "Sort" }));
      head.firstChild.addEventListener("click", () => sort(listColumn, head));
      $("columns").append(head);
    });
    document.querySelector(".find").hidden = videos.length < 2;
    $("found").textContent = `${videos.length} ${videos.length === 1 ? "video" : "videos"}`;
  }

  function sort({ value }, head) {
    const falling = head.getAttribute("aria-sort") === "ascending";
    for (const other of $("columns").children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const sign = falling ? -1 : 1;
    const rows = [...$("rows").children].map((row) => [value(videos[row.dataset.number]), row]);
    rows.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null); // unknown ones stand last either way
      return sign * (typeof a === "string" ? a.localeCompare(b, undefined, { numeric: true }) : a - b);
    });
    $("rows").append(...rows.map(([, row]) => row));
  }

  function filter() {
    const wanted = $("find").value.trim().toLowerCase();
    let found = 0;
    for (const row of $("rows").children) {
      row.hidden = !videos[row.dataset.number].name.toLowerCase().includes(wanted);
      found += !row.hidden;
    }
    $("found").textContent = `${found} of ${videos.length} videos`;
  }

  function scrollToRow(row) {
    const list = document.querySelector(".list");
    const [top, head] = [row.offsetTop, $("columns").offsetHeight];
    if (top - head < list.scrollTop || top + row.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = top - head - row.offsetHeight;
  }

  function followHash() {
    const named = videos.findIndex((video) => hash(video) === location.hash);
    choose(Math.max(0, named));
  }

  // ---- Start.

  $("plane").after(
    make("div", { id: "plane-label", className: "mark point label-now" }),
    make("div", { id: "plane-now", className: "mark point" }),
  );
  drawList();
  $("find").addEventListener("input", filter);
  $("rows").addEventListener("click", (event) => {
    if (!event.target.closest("a")) event.target.closest("tr").querySelector("a").click();
  });
  $("time").addEventListener("keydown", keys);
  $("strip").addEventListener("click", (event) => {
    const { time } = event.target.dataset;
    if (time !== undefined) seek(Number(time));
  });
  $("words").addEventListener("click", (event) => {
    const { index } = event.target.dataset;
    if (index !== undefined) seekWord(index);
  });
  // One stop of the Tab key; arrows go from word to word.
  $("words").addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const { index } = event.target.dataset;
    if (by === undefined || index === undefined) return;
    event.preventDefault();
    const next = wordButtons()[clamp(Number(index) + by, 0, data.words.length - 1)];
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
  $("nearer").addEventListener("click", () => zoom(0.5));
  $("farther").addEventListener("click", () => zoom(2));
  $("whole").addEventListener("click", () => setRange(0, data.end));
  addEventListener("hashchange", followHash);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => data && drawCharts());
  if (videos.length) followHash();
  let width = document.body.clientWidth;
  new ResizeObserver(() => {
    if (!data || document.body.clientWidth === width) return;
    width = document.body.clientWidth;
    drawPlane();
    layOut();
  }).observe(document.body);
}
