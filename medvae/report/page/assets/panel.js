"use strict";
// Pairs to slide between, and answers that are saved as a file. Nothing is filled in here.
(() => {
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

  function comparison(root) {
    const data = JSON.parse(root.querySelector("script").textContent);
    const [pairs, depth, rows, columns, channels] = data.shape;
    const images = { before: bytes(data.before), after: bytes(data.after) };
    const pixels = rows * columns;
    const mean = bytes(data.mean);
    const own = new Float32Array(pairs * depth * pixels); // of each pair, the mean over channels
    images.before.forEach((value, n) => { own[Math.floor(n / channels)] += Math.abs(images.after[n] - value) / channels; });
    const largest = own.reduce((most, value) => Math.max(most, value), 0) || 1;
    const heats = {
      pair: (n) => own[(Number(subject.value) * depth + Number(slice.value)) * pixels + n] / largest,
      mean: (n) => mean[Number(slice.value) * pixels + n] / 255,
    };
    const named = (name) => root.querySelector(`[name="${name}"]`);
    const [subject, mix, slice, flicker, overlay] = ["subject", "mix", "slice", "flicker", "overlay"].map(named);
    data.shown.forEach((entry, k) => subject.add(new Option(entry.id, String(k))));
    slice.max = String(depth - 1);
    slice.value = String(Math.floor(depth / 2));
    root.querySelector(".slices").hidden = depth === 1;

    function paint(name, share) {
      const canvas = root.querySelector(`canvas.${name}`);
      canvas.width = columns;
      canvas.height = rows;
      const context = canvas.getContext("2d");
      const drawn = context.createImageData(columns, rows);
      const start = (Number(subject.value) * depth + Number(slice.value)) * pixels;
      for (let n = 0; n < pixels; n++) {
        for (let c = 0; c < 3; c++) {
          const at = (start + n) * channels + Math.min(c, channels - 1);
          drawn.data[4 * n + c] = (1 - share) * images.before[at] + share * images.after[at];
        }
        drawn.data[4 * n + 3] = 255;
        if (overlay.value) {
          const heat = heats[overlay.value](n);
          drawn.data[4 * n] += (255 - drawn.data[4 * n]) * heat * 0.8;
          drawn.data[4 * n + 1] *= 1 - heat * 0.6;
          drawn.data[4 * n + 2] *= 1 - heat * 0.6;
        }
      }
      context.putImageData(drawn, 0, 0);
      return canvas.parentElement.querySelector("figcaption");
    }

    function draw() {
      const entry = data.shown[Number(subject.value)];
      const share = Number(mix.value) / 100;
      named("at").textContent = `${Number(slice.value) + 1} of ${depth}`;
      paint("before", 0).textContent = `before: p = ${entry.before.toFixed(2)}`;
      paint("between", share).textContent = share === 0 ? "before" : share === 1 ? "after" : `${mix.value} % of the way`;
      paint("after", 1).textContent = `after: p = ${entry.after.toFixed(2)}`;
    }

    let timer = 0;
    flicker.addEventListener("click", () => {
      const on = flicker.getAttribute("aria-pressed") !== "true";
      flicker.setAttribute("aria-pressed", String(on));
      clearInterval(timer);
      if (on) timer = setInterval(() => { mix.value = mix.value === "0" ? "100" : "0"; draw(); }, 600);
    });
    [subject, mix, slice, overlay].forEach((control) => control.addEventListener("input", draw));
    root.querySelectorAll("[hidden]").forEach((part) => { if (!part.matches(".slices")) part.hidden = false; });
    root.querySelector(".nowebgl").hidden = true;
    draw();
  }

  document.querySelectorAll(".comparison").forEach(comparison);

  const form = document.querySelector(".answers");
  if (!form) return;
  const attributes = JSON.parse(form.querySelector("script").textContent);
  const state = form.querySelector(".state");
  const part = (number) => document.querySelector(`.judgement[data-attribute="${number}"]`);
  const chosen = (root, name) => root.querySelector(`input[name="${name}"]:checked`)?.value ?? null;

  function collect() {
    return {
      report: form.dataset.report,
      expert: form.querySelector('[name="expert"]').value.trim(),
      field: form.querySelector('[name="field"]').value.trim(),
      answers: attributes.map(({ number, coordinate, direction }) => {
        const root = part(number);
        const sure = chosen(root, `confidence${number}`);
        return {
          attribute: number, coordinate, direction,
          judgement: chosen(root, `judgement${number}`),
          confidence: sure === null ? null : Number(sure),
          hypothesis: root.querySelector('[name="hypothesis"]').value,
          notes: root.querySelector('[name="notes"]').value,
        };
      }),
    };
  }

  function tell() {
    const given = collect().answers.filter((answer) => answer.judgement !== null).length;
    state.textContent = `${given} of ${attributes.length} attributes judged.`;
  }

  form.querySelector('[name="save"]').addEventListener("click", () => {
    const answers = collect();
    if (!answers.expert) {
      state.textContent = "Please give your name or initials first.";
      form.querySelector('[name="expert"]').focus();
      return;
    }
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(answers, null, 1)], { type: "application/json" }));
    link.download = `answers_${answers.expert.replace(/[^\p{L}\p{N}]+/gu, "_")}.json`;
    link.click();
    URL.revokeObjectURL(link.href);
    state.textContent = `Saved as ${link.download}.`;
  });

  form.querySelector('[name="load"]').addEventListener("change", async (event) => {
    try {
      const saved = JSON.parse(await event.target.files[0].text());
      if (saved.report !== form.dataset.report) throw new Error("they are of another report");
      form.querySelector('[name="expert"]').value = saved.expert;
      form.querySelector('[name="field"]').value = saved.field;
      for (const answer of saved.answers) {
        const root = part(answer.attribute);
        root.querySelectorAll("input").forEach((input) => {
          const value = input.name.startsWith("judgement") ? answer.judgement : answer.confidence;
          input.checked = input.value === String(value);
        });
        root.querySelector('[name="hypothesis"]').value = answer.hypothesis;
        root.querySelector('[name="notes"]').value = answer.notes;
      }
      tell();
    } catch (error) {
      state.textContent = `These answers cannot be read: ${error.message}.`;
    }
  });
  document.addEventListener("input", tell);
  tell();
})();
