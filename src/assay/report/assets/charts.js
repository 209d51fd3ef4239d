// Linked panels of curves, drawn by uPlot.
//
//   const group = assayCharts.group(names)            what the panels of a page share: names of labels, all optional
//   assayCharts.panel(parent, spec, group)            one panel with its readout
//   assayCharts.plane(parent, spec, group)            paths of one metric against another (plane.js)
//   group.pin(x)  group.show(label, on)  group.showSeed(seed, on)  group.highlight(label or null)  group.redraw()
//
// spec of a panel: {title, xLabel, yLabel, x: [..], series: [{label, slot, seed, values, low, high}], logX, logY,
//   and, where wanted, note, levels: [{label, value}], spans: [{from, to}], yRange: [low, high], fromZero, digits}. A
//   series may bring a name for its readout, a colour (a variable of the style sheet), dashes (a number) of its own, and
//   onset: an x at which a triangle stands on it.
// A value that is unknown is null. slot picks colour and dashes. A series with seed null is the mean over seeds, and
// the others of its label are drawn thin; low and high are null or one value for each x.
// Positions on logarithmic axes are logarithms, so that 0 can have a place of its own at the left edge.
const assayCharts = (() => {
  "use strict";
  const NUM_COLOURS = 7;
  const DASHES = [[], [9, 4], [2.5, 3], [11, 3, 2, 3], [16, 5], [6, 2, 2, 2, 2, 2], [4, 6]];
  const FONT = '12px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif';
  const NEAR = 22; // CSS pixels within which a curve is pointed at
  const FADED = 0.16;

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const arm = (slot) => `arm-${slot % NUM_COLOURS}`;
  // Where colours begin again, dashes do not: no two of the first 49 slots share both.
  const dashes = (slot) => DASHES[(slot + Math.floor(slot / NUM_COLOURS)) % DASHES.length];
  const colourOf = (series) => series.colour ?? arm(series.slot);
  const dashOf = (series) => dashes(series.dash ?? series.slot);
  const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

  function element(tag, attributes = {}, text = "") {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text !== "") made.textContent = text;
    return made;
  }

  function number(value, digits = 2) {
    if (!known(value)) return "–";
    const size = Math.abs(value);
    const places = size > 0 && size < 0.095 && digits > 0 ? digits + 1 : size >= 1000 ? 0 : digits;
    const text = value.toLocaleString("en-US", { minimumFractionDigits: places, maximumFractionDigits: places });
    return (Number(text) === 0 ? text.replace("-", "") : text).replace("-", "−");
  }

  // The label of a tick; tens of thousands and more are cut short (20K, 1.5M), or neighbours would touch.
  const plain = (value) => Number(value.toPrecision(6)).toLocaleString("en-US", Math.abs(value) >= 1e4
    ? { notation: "compact", maximumFractionDigits: 3 } : { maximumFractionDigits: 10 }).replace("-", "−");

  // 1, 2 and 5 of every decade between two values while that is few; then fewer, down to powers of ten.
  function roundValues(low, high, most) {
    let found = [];
    for (const leading of [[1, 2, 5], [1, 3], [1]]) {
      found = [];
      for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++)
        for (const digit of leading) {
          const value = Number(`${digit}e${e}`);
          if (value >= low * 0.999999 && value <= high * 1.000001) found.push(value);
        }
      if (found.length <= most) break;
    }
    const every = Math.ceil(found.length / Math.max(most, 1));
    return found.filter((_, i) => i % every === 0);
  }

  function evenValues(low, high, most) {
    const rough = (high - low) / Math.max(most, 1);
    if (!(rough > 0)) return [low];
    const power = 10 ** Math.floor(Math.log10(rough));
    const gap = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
    const found = [];
    for (let i = Math.ceil(low / gap - 1e-9); i * gap <= high + gap * 1e-9; i++) found.push(Number((i * gap).toPrecision(12)));
    return found;
  }

  // An axis: where values stand, and its ticks between two places. Linear, or logarithmic with room for 0.
  function axisOf(values, logarithmic) {
    const positive = values.filter((value) => known(value) && value > 0);
    if (!logarithmic || !positive.length) {
      return { place: (value) => (known(value) ? value : null),
        ticks: (low, high, most) => evenValues(low, high, most).map((value) => [value, plain(value)]) };
    }
    const last = positive.reduce((a, b) => Math.max(a, b));
    const first = Math.max(positive.reduce((a, b) => Math.min(a, b)), last / 1e12);
    const zero = Math.log10(first) - 0.14 * Math.max(Math.log10(last / first), 0.5);
    const hasZero = values.some((value) => value === 0);
    return {
      place: (value) => (!known(value) || value < 0 ? null : value === 0 ? zero : Math.log10(Math.max(value, first))),
      ticks(low, high, most) {
        const from = 10 ** Math.max(low, hasZero ? Math.log10(first) : low);
        let round = roundValues(from, 10 ** high, most);
        if (round.length < 3) round = evenValues(from, 10 ** high, most).filter((value) => value > 0);
        const ticks = round.map((value) => [Math.log10(value), plain(value)]);
        return hasZero && zero >= low ? [[zero, "0"], ...ticks] : ticks;
      },
    };
  }

  function group(names = {}) {
    const hiddenLabels = new Set(), hiddenSeeds = new Set(), members = [], listeners = [];
    let pinned = null, pointed = null, highlighted = null, waiting = false;
    const made = {
      name: (label) => names[label] ?? label,
      get at() { return pointed ?? pinned; },
      get pinned() { return pinned; },
      get highlighted() { return highlighted; },
      isShown: (series) => !hiddenLabels.has(series.label) && !hiddenSeeds.has(String(series.seed)),
      add(member) { members.push(member); },
      // what ∈ "pin", "point", "highlight", "pick": of what a page wants to hear; pick is a click on an x
      onChange(listener) { listeners.push(listener); },
      tell(what, value) { listeners.forEach((listener) => listener(what, value)); },
      pin(x) { pinned = x; made.redraw(); made.tell("pin", x); },
      point(x, source = null) {
        if (x === pointed) return;
        pointed = x;
        members.forEach((member) => member.point(x, member === source));
        made.tell("point", x);
      },
      highlight(label) {
        if (label === highlighted) return;
        highlighted = label;
        made.redraw();
        made.tell("highlight", label);
      },
      show(label, on) { on ? hiddenLabels.delete(label) : hiddenLabels.add(label); members.forEach((m) => m.refit()); },
      showSeed(seed, on) {
        on ? hiddenSeeds.delete(String(seed)) : hiddenSeeds.add(String(seed));
        members.forEach((m) => m.refit());
      },
      redrawNow() { members.forEach((member) => member.redraw()); },
      // many changes in one turn are drawn once
      redraw() {
        if (waiting) return;
        waiting = true;
        requestAnimationFrame(() => { waiting = false; made.redrawNow(); });
      },
    };
    return made;
  }

  function frame(parent, spec) {
    const box = element("div", { class: "panel" });
    if (spec.title) box.append(element("h4", {}, spec.title));
    const caption = [spec.title, spec.yLabel && `${spec.yLabel} over ${spec.xLabel}`].filter(Boolean).join(": ");
    const plot = element("div", { class: "plot", role: "img", "aria-label": `${caption}. The list after it has the values.` });
    const readout = element("ul", { class: "readout" });
    box.append(plot, readout);
    if (spec.note) box.append(element("p", { class: "note" }, spec.note));
    parent.append(box);
    return { box, plot, readout };
  }

  function options(spec, width, height, axes, ranges, cursor, hooks, series) {
    const axis = (side, label, which, size, space) => ({
      side, size, label, labelSize: 20, labelGap: 0, font: FONT, labelFont: FONT, gap: 4,
      stroke: () => colour("muted"), grid: { stroke: () => colour("grid"), width: 1 },
      ticks: { stroke: () => colour("grid"), width: 1, size: 4 },
      splits: (u, _, low, high) => which.ticks(low, high, Math.floor((side === 2 ? u.width : u.height) / space)).map((t) => t[0]),
      values: (u, splits) => {
        const [low, high] = [u.scales[side === 2 ? "x" : "y"].min, u.scales[side === 2 ? "x" : "y"].max];
        const named = new Map(which.ticks(low, high, Math.floor((side === 2 ? u.width : u.height) / space)));
        return splits.map((split) => named.get(split) ?? "");
      },
    });
    return {
      width, height, pxAlign: 0, legend: { show: false }, cursor, hooks, series, padding: [8, 10, 0, 0],
      scales: { x: { time: false, range: ranges.x }, y: { range: ranges.y } },
      axes: [axis(2, spec.xLabel, axes.x, 26, 64), axis(3, spec.yLabel, axes.y, 46, 46)],
    };
  }

  // Keeps a chart as wide as its place.
  function follow(plot, chart, heightOf) {
    let last = 0;
    new ResizeObserver(() => requestAnimationFrame(() => {
      const width = plot.clientWidth;
      if (width > 0 && width !== last) chart.setSize({ width: (last = width), height: heightOf(width) });
    })).observe(plot);
  }

  // A dashed line across the plot at a value that does not change; its name stands at the left or at the bottom.
  function level(u, { label, x, y }) {
    const ratio = devicePixelRatio, { left, top, width, height } = u.bbox, isFlat = x === undefined;
    const at = isFlat ? u.valToPos(y, "y", true) : u.valToPos(x, "x", true);
    u.ctx.save();
    u.ctx.strokeStyle = u.ctx.fillStyle = colour("muted");
    u.ctx.lineWidth = ratio;
    u.ctx.setLineDash([5 * ratio, 4 * ratio]);
    u.ctx.beginPath();
    isFlat ? u.ctx.moveTo(left, at) : u.ctx.moveTo(at, top);
    isFlat ? u.ctx.lineTo(left + width, at) : u.ctx.lineTo(at, top + height);
    u.ctx.stroke();
    u.ctx.font = FONT.replace("12px", `${11 * ratio}px`);
    u.ctx.textAlign = !isFlat && at > left + width / 2 ? "right" : "left";
    u.ctx.textBaseline = "bottom";
    const aside = u.ctx.textAlign === "right" ? -4 : 4;
    u.ctx.fillText(label, (isFlat ? left : at) + aside * ratio, (isFlat ? at : top + height) - 3 * ratio);
    u.ctx.restore();
  }

  // Of levels, those that a plot of values between low and high can show without squashing the curves.
  function near(levels, low, high) {
    const room = 0.6 * (high - low);
    return levels.filter((value) => known(value) && value >= low - room && value <= high + room);
  }

  function dot(u, x, y, stroke, radius, filled) {
    u.ctx.setLineDash([]);
    u.ctx.beginPath();
    u.ctx.arc(x, y, radius * devicePixelRatio, 0, 2 * Math.PI);
    u.ctx.fillStyle = filled ? stroke : colour("card");
    u.ctx.strokeStyle = filled ? colour("card") : stroke;
    u.ctx.lineWidth = 1.5 * devicePixelRatio;
    u.ctx.fill();
    u.ctx.stroke();
  }

  // A swatch of an arm's line: its colour and its dashes.
  function swatch(slot, series = { slot }) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    for (const [name, value] of Object.entries({ class: "swatch", width: 30, height: 10, "aria-hidden": "true" }))
      svg.setAttribute(name, value);
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    const look = { x1: 1, x2: 29, y1: 5, y2: 5, stroke: `var(--${colourOf(series)})`, "stroke-width": 2.5 };
    for (const [name, value] of Object.entries(look)) line.setAttribute(name, value);
    if (dashOf(series).length) line.setAttribute("stroke-dasharray", dashOf(series).join(" "));
    svg.append(line);
    return svg;
  }

  const MANY = 4; // above so many labels the seeds of each are said on demand

  // A line of the readout for each label, or for each series that has a name of its own; say(series → text) fills it.
  function lines(readout, all, group) {
    const heads = all.filter((each) => !each.thin);
    const isLong = new Set(heads.map((each) => each.label)).size <= MANY;
    const made = heads.map((each) => {
      const item = element("li"), value = element("span", { class: "value" }), seeds = element("small");
      item.append(swatch(each.slot, each), element("span", { class: "label" }, nameOf(each, group)), value);
      const members = all.filter((other) => other.thin && other.label === each.label);
      if (members.length && isLong) item.append(seeds);
      item.addEventListener("mouseenter", () => group.highlight(each.label));
      item.addEventListener("mouseleave", () => group.highlight(null));
      readout.append(item);
      return { each, item, value, seeds, members };
    });
    return {
      show() { for (const line of made) line.item.hidden = !group.isShown(line.each); },
      say(valueOf, isFaded) {
        for (const line of made) {
          line.value.textContent = valueOf(line.each);
          line.item.classList.toggle("faded", isFaded(line.each));
          const shown = line.members.filter(group.isShown).map((member) => `seed ${member.seed}: ${valueOf(member)}`).join(" · ");
          if (isLong) line.seeds.textContent = shown;
          else if (shown) line.item.title = shown;
        }
      },
    };
  }

  // The levels that a plot has room for; the others are said below it.
  function levelsIn(readout, levels, fits, valueOf) {
    for (const each of levels.filter((one) => one.label && !fits(one))) {
      const item = element("li", { class: "level" });
      item.append(element("span"), element("span", { class: "label" }, `${each.label} (outside the plot)`),
        element("span", { class: "value" }, number(valueOf(each))));
      readout.append(item);
    }
    return levels.filter(fits);
  }

  const nameOf = (series, group) => series.name ?? group.name(series.label);

  // Of each series whether it is drawn thin: one of several seeds, of which there is a mean.
  function withSeeds(series) {
    const means = new Set(series.filter((each) => each.seed === null).map((each) => each.label));
    return series.map((each) => ({ ...each, thin: means.has(each.label) && each.seed !== null }));
  }

  function panel(parent, spec, shared = group()) {
    const { box, plot, readout } = frame(parent, spec);
    const all = withSeeds(spec.series);
    const axes = { x: axisOf(spec.x, spec.logX), y: axisOf(all.flatMap((each) => each.values), spec.logY) };
    if (spec.logY) axes.y = axisOf(all.flatMap((each) => each.values).filter((value) => value > 0), true);
    const placeY = spec.logY ? (value) => (known(value) && value > 0 ? axes.y.place(value) : null) : axes.y.place;
    const places = spec.x.map(axes.x.place);
    const data = [places], series = [{}], bands = [];
    const indexOf = new Map();
    for (const each of all) {
      indexOf.set(each, data.length);
      data.push(each.values.map(placeY));
      const stroke = () => colour(colourOf(each));
      series.push({ stroke, width: each.thin ? 1 : 2, dash: dashOf(each), spanGaps: true, points: { show: false } });
      if (!each.low) continue;
      const [low, high] = [data.length, data.length + 1];
      data.push(each.low.map(spec.logY ? (v) => (known(v) ? Math.log10(Math.max(v, 1e-12)) : null) : placeY), each.high.map(placeY));
      series.push(...[0, 1].map(() => ({ stroke: "transparent", width: 0, spanGaps: true, points: { show: false }, auto: !spec.logY })));
      bands.push({ series: [high, low], each });
    }
    const rows = lines(readout, all, shared);
    const placed = data.slice(1).flat().filter(known);
    const levelsShown = levelsIn(readout, spec.levels ?? [], (each) => {
      const place = placeY(each.value);
      return near([place], placed.reduce((a, b) => Math.min(a, b), spec.fromZero ? 0 : Infinity), placed.reduce((a, b) => Math.max(a, b), -Infinity)).length > 0;
    }, (each) => each.value);

    function rangeY(u, low, high) {
      if (spec.yRange) return spec.yRange.map(spec.logY ? Math.log10 : Number);
      if (!known(low)) return [0, 1];
      if (spec.fromZero) return [0, Math.max(high * 1.08, 0.02)];
      const levels = near(levelsShown.map((each) => placeY(each.value)), low, high);
      [low, high] = [Math.min(low, ...levels), Math.max(high, ...levels)];
      const room = 0.07 * (high - low) || 0.1 * Math.abs(high) || 1;
      return [low - room, high + room];
    }
    function rangeX(u, low, high) {
      const room = 0.03 * (high - low) || 0.5;
      return [low - room, high + room];
    }
    function nearest(u, left) {
      const away = places.map((place) => Math.abs(u.valToPos(place, "x") - left));
      return away.indexOf(Math.min(...away));
    }
    // The last evaluation at or before x that this curve has.
    function indexAt(x) {
      let found = -1;
      spec.x.forEach((each, i) => { if (each <= x && (found < 0 || each >= spec.x[found])) found = i; });
      return found;
    }
    function curveNear(index, top) {
      let best = null, distance = NEAR;
      for (const each of all) {
        const place = placeY(each.values[index]);
        if (place === null || !shared.isShown(each)) continue;
        const away = Math.abs(chart.valToPos(place, "y") - top);
        if (away < distance) [best, distance] = [each.label, away];
      }
      return best;
    }
    function drawOnsets(u) {
      for (const each of all.filter((one) => known(one.onset) && shared.isShown(one) && !isFaded(one))) {
        const place = placeY(each.values[spec.x.indexOf(each.onset)] ?? null);
        if (place === null) continue;
        const [x, y, size] = [u.valToPos(axes.x.place(each.onset), "x", true), u.valToPos(place, "y", true), 6 * devicePixelRatio];
        u.ctx.save();
        u.ctx.setLineDash([]);
        u.ctx.fillStyle = colour(colourOf(each));
        u.ctx.strokeStyle = colour("card");
        u.ctx.beginPath();
        [[-size, -size * 1.6], [size, -size * 1.6], [0, 0]].forEach(([dx, dy], i) => (i ? u.ctx.lineTo(x + dx, y + dy) : u.ctx.moveTo(x + dx, y + dy)));
        u.ctx.closePath();
        u.ctx.fill();
        u.ctx.stroke();
        u.ctx.restore();
      }
    }
    function drawMarks(u) {
      drawOnsets(u);
      for (const each of levelsShown) level(u, { label: each.label, y: placeY(each.value) });
      if (shared.pinned === null || indexAt(shared.pinned) < 0) return;
      const x = u.valToPos(axes.x.place(Math.min(shared.pinned, spec.x[spec.x.length - 1])), "x", true);
      u.ctx.save();
      u.ctx.strokeStyle = colour("ink");
      u.ctx.globalAlpha = 0.55;
      u.ctx.lineWidth = 1.5 * devicePixelRatio;
      u.ctx.setLineDash([]);
      u.ctx.beginPath();
      u.ctx.moveTo(x, u.bbox.top);
      u.ctx.lineTo(x, u.bbox.top + u.bbox.height);
      u.ctx.stroke();
      u.ctx.globalAlpha = 1;
      for (const each of all) {
        const y = placeY(each.values[indexAt(shared.pinned)]);
        if (y === null || each.thin || each.colour || !shared.isShown(each) || isFaded(each)) continue;
        dot(u, x, u.valToPos(y, "y", true), colour(colourOf(each)), 4, true);
      }
      u.ctx.restore();
    }
    function drawSpans(u) {
      for (const each of spec.spans ?? []) {
        const [from, to] = [each.from, each.to].map((x) => u.valToPos(axes.x.place(x), "x", true));
        u.ctx.save();
        u.ctx.fillStyle = colour("muted");
        u.ctx.globalAlpha = 0.13;
        u.ctx.fillRect(from, u.bbox.top, to - from, u.bbox.height);
        u.ctx.restore();
      }
    }
    const isFaded = (each) => shared.highlighted !== null && each.label !== shared.highlighted;

    const cursor = {
      y: false, points: { show: false },
      // the cursor snaps to evaluations, which uPlot would take for a drag, whose click it stops
      drag: { x: false, y: false, setScale: false, click: () => null },
      bind: { dblclick: () => null },
      move: (u, left, top) => (left < 0 ? [left, top] : [u.valToPos(places[nearest(u, left)], "x"), top]),
    };
    const height = (width) => Math.round(Math.min(260, Math.max(200, width * 0.62)));
    const chart = new uPlot(
      { ...options(spec, 320, height(320), axes, { x: rangeX, y: rangeY }, cursor, {
          drawAxes: [drawSpans],
          draw: [drawMarks],
        }, series),
        bands: bands.map(({ series: pair, each }) => ({ series: pair, fill: () => tint(colour(colourOf(each)), isFaded(each) ? 0.03 : shared.highlighted !== null || bands.length <= MANY ? 0.17 : 0.07) })) },
      data, plot);
    const member = {
      box, chart,
      point(x, isSource) {
        if (!isSource) {
          const index = x === null ? -1 : indexAt(x);
          const left = index < 0 ? -10 : chart.valToPos(places[index], "x");
          chart.setCursor({ left, top: index < 0 ? -10 : 1 }, false);
        }
        fill();
      },
      refit() {
        // companions of a curve come and go with it
        for (const each of all) {
          const first = indexOf.get(each), on = shared.isShown(each);
          for (let i = first; i <= first + (each.low ? 2 : 0); i++) chart.series[i].show = on;
        }
        rows.show();
        box.hidden = !all.some(shared.isShown);
        chart.setData(data, true);
        fill();
      },
      redraw() {
        for (const each of all) {
          const line = chart.series[indexOf.get(each)];
          line.alpha = isFaded(each) ? FADED : each.thin ? 0.55 : 1;
          line.width = (each.thin ? 1 : 2) + (each.label === shared.highlighted && !each.thin ? 1 : 0);
        }
        chart.redraw(false);
        fill();
      },
    };
    function fill() {
      const index = shared.at === null ? spec.x.length - 1 : indexAt(shared.at);
      rows.say((each) => {
        const [value, low, high] = [each.values, each.low ?? [], each.high ?? []].map((list) => list[index]);
        const bounds = known(low) && known(high) && low !== high ? ` [${number(low, spec.digits)}, ${number(high, spec.digits)}]` : "";
        return number(value, spec.digits) + bounds;
      }, isFaded);
    }
    chart.over.addEventListener("mousemove", () => {
      const { left, top } = chart.cursor;
      if (left < 0) return;
      const index = nearest(chart, left);
      shared.point(spec.x[index], member);
      shared.highlight(curveNear(index, top));
    });
    chart.over.addEventListener("click", () => {
      if (chart.cursor.left >= 0) shared.tell("pick", spec.x[nearest(chart, chart.cursor.left)]);
    });
    chart.over.addEventListener("mouseleave", () => { shared.point(null); shared.highlight(null); });
    follow(plot, chart, height);
    shared.add(member);
    member.refit();
    member.redraw();
    return member;
  }

  function tint(hex, alpha) {
    const parts = /^#(..)(..)(..)$/.exec(hex);
    return parts ? `rgba(${parts.slice(1).map((part) => parseInt(part, 16)).join(", ")}, ${alpha})` : hex;
  }

  const parts = { frame, options, axisOf, level, near, dot, lines, levelsIn, withSeeds, colour, colourOf, dashOf, arm, known, follow, NEAR, FADED };
  return { group, panel, swatch, element, number, parts };
})();
