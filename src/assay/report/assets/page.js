// The report of runs: arms, seeds and a step, shared by every chart and by the responses. Data: see report/page_data.py
// and report/responses.py. Text goes in by textContent alone.
(() => {
  "use strict";
  const { element, swatch, number } = assayCharts;
  const data = JSON.parse(document.getElementById("data").textContent);
  const names = Object.fromEntries(data.arms.map((arm) => [arm.label, arm.name]));
  const slots = Object.fromEntries(data.arms.map((arm) => [arm.label, arm.slot]));
  const shared = assayCharts.group(names);
  document.querySelectorAll(".scripted").forEach((each) => { each.hidden = false; });

  function toggle(place, label, onChange, mark = null) {
    const button = element("button", { type: "button", "aria-pressed": "true" });
    if (mark) button.append(mark);
    button.append(element("span", {}, label));
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(on));
      onChange(on);
    });
    place.append(button);
    return button;
  }

  function toggles() {
    const arms = document.getElementById("arms");
    for (const arm of data.arms) {
      const button = toggle(arms, arm.name, (on) => { shared.show(arm.label, on); responses?.fill(); }, swatch(arm.slot));
      for (const [event, label] of [["mouseenter", arm.label], ["focus", arm.label], ["mouseleave", null], ["blur", null]])
        button.addEventListener(event, () => shared.highlight(label));
    }
    const seeds = document.getElementById("seeds");
    if (data.seeds.length) seeds.append(element("span", { class: "title" }, "seeds"));
    for (const seed of data.seeds) toggle(seeds, String(seed), (on) => shared.showSeed(seed, on));
  }

  function stepper() {
    const slider = document.getElementById("step"), output = document.getElementById("at");
    slider.max = String(data.steps.length - 1);
    const move = () => shared.pin(data.steps[Number(slider.value)]);
    slider.addEventListener("input", move);
    shared.onChange((what, x) => {
      if (what === "pick") { slider.value = String(data.steps.findLastIndex((step) => step <= x)); move(); }
      if (what === "pin" || what === "point") {
        const step = shared.at, i = data.steps.indexOf(step);
        const epoch = data.epochs && i >= 0 ? `, epoch ${number(data.epochs[i], 1)}` : "";
        output.textContent = `step ${step.toLocaleString("en-US")}${epoch} (evaluation ${i + 1} of ${data.steps.length})`;
        if (what === "pin") slider.setAttribute("aria-valuetext", output.textContent);
      }
      if (what === "pin") responses?.fill();
    });
    slider.value = slider.max;
    move();
  }

  function charts() {
    for (const place of document.querySelectorAll("[data-figure]")) {
      const figure = data.figures[place.dataset.figure];
      if (figure.plane) assayCharts.plane(place, figure.plane, shared);
      for (const panel of figure.panels ?? []) assayCharts.panel(place, panel, shared);
    }
  }

  function makeResponses() {
    const place = document.getElementById("responses");
    if (!place || !data.responses.prompts.length) return null;
    const prompts = data.responses.prompts;
    const hasTokens = prompts.some((block) => block.arms.some((arm) => arm.tokens));
    const chosen = { prompt: 0, against: null, seenBy: null };
    const choices = element("div", { class: "choices", role: "group", "aria-label": "Prompt" });
    choices.append(element("span", {}, "Prompt"));
    const toggles = element("div", { class: "toggles" });
    const buttons = prompts.map((_, i) => {
      const button = element("button", { type: "button", "aria-label": `Prompt ${i + 1}` }, String(i + 1));
      button.addEventListener("click", () => { chosen.prompt = i; fill(); });
      toggles.append(button);
      return button;
    });
    choices.append(toggles);
    const colours = hasTokens ? colourChoices(prompts, chosen, () => fill()) : null;
    const body = element("div", { class: "sample" });
    place.append(choices);
    if (colours) place.append(...colours);
    else place.append(element("p", { class: "note" }, "This run has no file of token probabilities (tokens.parquet): the responses are shown without colours."));
    if (data.responses.num_left_out)
      place.append(element("p", { class: "note" }, `For the size of this page, ${data.responses.num_left_out} evaluations of an arm are left out here; responses.parquet has all.`));
    place.append(body);

    function fill() {
      const block = prompts[chosen.prompt];
      buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(i === chosen.prompt)));
      const prompt = element("p", { class: "prompt", dir: "auto" });
      if (block.run) prompt.append(element("small", {}, block.run));
      prompt.append(block.prompt);
      const fixed = element("div", { class: "row" }), students = element("div", { class: "row" });
      for (const each of block.fixed) fixed.append(cell([each.who], each, fixedTokens(block, each, chosen, shared.pinned)));
      for (const arm of block.arms) {
        if (!shared.isShown({ label: arm.label, seed: null })) continue;
        const i = Math.max(arm.steps.findLastIndex((step) => step <= shared.pinned), 0);
        const who = [swatch(slots[arm.label]), element("b", {}, names[arm.label]), ` at step ${arm.steps[i].toLocaleString("en-US")}`];
        const made = cell(who, { text: arm.texts[i], cut: arm.cut[i] }, arm.tokens && ownTokens(arm.tokens[i], chosen));
        made.dataset.label = arm.label;
        students.append(made);
      }
      const said = [`Students at step ${shared.pinned.toLocaleString("en-US")}`, "Written once, the same at every step"];
      body.replaceChildren(prompt, ...(block.fixed.length ? [element("p", { class: "rowname" }, said[1]), fixed] : []),
        element("p", { class: "rowname" }, said[0]), students);
      light(shared.highlighted);
    }
    function light(label) {
      for (const made of body.querySelectorAll("[data-label]")) made.classList.toggle("lit", made.dataset.label === label);
    }
    shared.onChange((what, label) => { if (what === "highlight") light(label); });
    return { fill };
  }

  function cell(who, response, coloured) {
    const made = element("div", { class: "cell" });
    const head = element("div", { class: "who" });
    head.append(...who);
    const text = element("div", { class: "text", dir: "auto" });
    if (coloured) text.append(...coloured.spans);
    else text.textContent = response.text;
    made.append(head, text);
    if (coloured) made.append(element("div", { class: "sum" }, coloured.sum));
    if (response.cut) made.append(element("div", { class: "cut" }, "cut at the length limit"));
    return made;
  }

  const AGAINST = { oracle: "oracle", teacher: "teacher" };

  function colourChoices(prompts, chosen, onChange) {
    const arms = prompts.flatMap((block) => block.arms).filter((arm) => arm.tokens);
    const known = Object.keys(AGAINST).filter((who) => arms.some((arm) => arm.tokens.some((each) => each[who])));
    chosen.against = known[0] ?? null;
    chosen.seenBy = arms[0].label;
    const against = element("fieldset");
    against.append(element("legend", {}, "Colour each token by"));
    for (const who of [...known, null]) {
      const id = `against-${who ?? "none"}`;
      const radio = element("input", { type: "radio", name: "against", id });
      radio.checked = who === chosen.against;
      radio.addEventListener("change", () => { chosen.against = who; onChange(); });
      const pair = element("span", { class: "key" });
      pair.append(radio, element("label", { for: id }, who ? `log ${AGAINST[who]} − log student` : "nothing"));
      against.append(pair);
    }
    const seen = element("select", { id: "seen-by" });
    for (const label of new Set(arms.map((arm) => arm.label))) seen.append(element("option", { value: label }, names[label]));
    seen.addEventListener("change", () => { chosen.seenBy = seen.value; onChange(); });
    const choices = element("div", { class: "choices" });
    choices.append(against, element("label", { for: "seen-by" }, "fixed responses as seen by"), seen);
    const legend = element("p", { class: "legend" });
    const key = (name, text) => {
      const made = element("span", { class: "key" });
      made.append(element("span", { class: `token ${name}` }, "abc"), element("span", {}, text));
      return made;
    };
    legend.append(key("more3", "the student gives it more, by 3 nats or above"), key("more2", "1.5"), key("more1", "0.5"), key("", "alike"),
      key("less1", "the student gives it less, by 0.5"), key("less2", "1.5"), key("less3", "3 nats or above"));
    return [choices, legend];
  }

  const level = (size) => (size >= 3 ? 3 : size >= 1.5 ? 2 : size >= 0.5 ? 1 : 0);

  // Tokens, each with its difference in hundredths of a nat.
  function spansOf({ texts, num_more: more }, differences, against) {
    let sum = 0;
    const spans = texts.map((text, i) => {
      const nats = differences[i] / 100, size = level(Math.abs(nats));
      sum += nats;
      return element("span", { class: `token ${size ? (nats > 0 ? "less" : "more") + size : ""}`, title: `log ${against} − log student: ${number(nats)} nats` }, i ? text : text.trimStart());
    });
    if (more) spans.push(element("span", {}, ` […${more} more tokens]`));
    return { spans, sum: `log ${against} − log student: ${number(sum)} nats over ${more ? "the first " : ""}${texts.length} tokens` };
  }

  function ownTokens(tokens, chosen) {
    const found = tokens && chosen.against && tokens[chosen.against];
    return found ? spansOf(tokens, found, AGAINST[chosen.against]) : null;
  }

  // A fixed response: what oracle or teacher give it, less what the chosen arm's student gives it at this step.
  function fixedTokens(block, response, chosen, step) {
    const arm = block.arms.find((each) => each.label === chosen.seenBy);
    const theirs = chosen.against && response.tokens && response.tokens[chosen.against];
    if (!arm?.fixed || !theirs) return null;
    const i = Math.max(arm.steps.findLastIndex((each) => each <= step), 0), own = arm.fixed[response.writer]?.[i];
    return own ? spansOf(response.tokens, theirs.map((each, k) => each - own[k]), AGAINST[chosen.against]) : null;
  }

  const responses = makeResponses();
  toggles();
  charts();
  stepper();
  assayControls.copying();
  assayControls.theme(() => shared.redrawNow());
})();
