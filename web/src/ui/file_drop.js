// Files dropped anywhere on the page.

/** @param {HTMLElement} target @param {(files: File[]) => void} onfiles */
export function acceptFiles(target, onfiles) {
  const hasFiles = (/** @type {DragEvent} */ event) =>
    event.dataTransfer?.types.includes("Files") ?? false;
  let depth = 0; // Entering a child comes before leaving its parent.
  const mark = (/** @type {number} */ value) => {
    depth = Math.max(0, value);
    target.classList.toggle("dropping", depth > 0);
  };
  target.addEventListener("dragenter", (event) => hasFiles(event) && mark(depth + 1));
  target.addEventListener("dragleave", (event) => hasFiles(event) && mark(depth - 1));
  target.addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
  target.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    mark(0);
    onfiles([...(event.dataTransfer?.files ?? [])]);
  });
}
