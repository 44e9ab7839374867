// A click on a picture shows it large; a prediction lies over image and ground truth, and a slider uncovers them.
const make = (name, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
};
const slider = (label, value) => {
  const input = make("input", { type: "range", min: 0, max: 100, value });
  return [input, make("label", {}, label, input)];
};
const pictures = [...document.querySelectorAll(".scene figure")];
if (pictures.length) {
  const title = make("h2", { id: "zoom-title" });
  const close = make("button", { type: "button", className: "close", textContent: "Close" });
  const [before, after] = ["Previous", "Next"].map((textContent) => make("button", { type: "button", textContent }));
  const stage = make("div", { className: "stage" });
  const [cut, cutLabel] = slider("Ground truth | prediction", 50);
  const [strength, strengthLabel] = slider("Image | classes", 100);
  const controls = make("div", { className: "controls" }, cutLabel, strengthLabel);
  const bar = make("div", { className: "bar" }, title, before, after, close);
  const dialog = make("dialog", { id: "zoom" }, bar, stage, controls);
  dialog.setAttribute("aria-labelledby", "zoom-title");
  document.body.append(dialog);
  const visible = (figure) => [...figure.querySelectorAll("img")].find((image) => image.checkVisibility());
  const first = (scene, part) => scene.querySelector(`figure.${part} img`);
  let shown = 0;
  const layer = (image, kind) => {
    const copy = image.cloneNode();
    copy.className = [image.classList.contains("label") ? "label" : "", kind].join(" ").trim();
    return copy;
  };
  const move = () => {
    stage.style.setProperty("--cut", `${cut.value}%`);
    stage.style.setProperty("--strength", strength.value / 100);
  };
  const show = (number) => {
    shown = (number + pictures.length) % pictures.length;
    const figure = pictures[shown];
    const image = visible(figure);
    const scene = figure.parentElement;
    const compared = figure.classList.contains("answer");
    title.textContent = image.alt;
    stage.style.setProperty("--aspect", image.width / image.height);
    controls.hidden = !compared;
    stage.classList.toggle("compared", compared);
    stage.replaceChildren(
      ...(compared
        ? [layer(first(scene, "image"), ""), layer(first(scene, "truth"), "map"), layer(image, "map over"),
           make("span", { className: "divider" })]
        : [layer(image, "")]),
    );
    move();
  };
  pictures.forEach((figure, number) => {
    const button = make("button", { type: "button", className: "open" });
    button.setAttribute("aria-label", `Enlarge: ${figure.querySelector("img").alt}`);
    button.append(...figure.querySelectorAll("img"));
    figure.prepend(button);
    button.addEventListener("click", () => {
      show(number);
      dialog.showModal();
      (controls.hidden ? close : cut).focus();
    });
  });
  for (const input of [cut, strength]) input.addEventListener("input", move);
  const drag = (event) => {
    if (!event.buttons || controls.hidden) return;
    const box = stage.getBoundingClientRect();
    cut.value = (100 * (event.clientX - box.left)) / box.width;
    move();
  };
  stage.addEventListener("pointerdown", drag);
  stage.addEventListener("pointermove", drag);
  close.addEventListener("click", () => dialog.close());
  before.addEventListener("click", () => show(shown - 1));
  after.addEventListener("click", () => show(shown + 1));
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  for (const hint of document.querySelectorAll(".hint")) hint.hidden = false;
}
