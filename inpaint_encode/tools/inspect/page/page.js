"use strict";

for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  if (body.rows.length < 2) continue;
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...body.rows].sort((one, other) => compared(one.cells[column], other.cells[column]));
      body.append(...(up ? rows : rows.reverse()));
    });
  });
}

function compared(one, other) {
  if ("sort" in one.dataset && "sort" in other.dataset) return one.dataset.sort - other.dataset.sort;
  return one.textContent.localeCompare(other.textContent, undefined, { numeric: true });
}

const dialog = document.querySelector("dialog");
const large = dialog.querySelector("img");
const caption = dialog.querySelector("p");
let shown = [];
let at = 0;

function show(step) {
  at = (at + step + shown.length) % shown.length;
  const picture = shown[at].querySelector("img");
  large.src = picture.src;
  large.alt = picture.alt;
  large.className = picture.className;
  caption.textContent = picture.alt;
}

for (const row of document.querySelectorAll(".row")) {
  const buttons = [...row.querySelectorAll("button")];
  buttons.forEach((button, index) => button.addEventListener("click", () => {
    [shown, at] = [buttons, index];
    show(0);
    dialog.showModal();
  }));
}
for (const button of dialog.querySelectorAll("button")) {
  button.addEventListener("click", () => (button.value ? show(Number(button.value)) : dialog.close()));
}
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
dialog.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") show(-1);
  if (event.key === "ArrowRight") show(1);
});
