/* A click on a figure shows it as large as the window, a second one at its own size. */
document.addEventListener("DOMContentLoaded", () => {
  const dialog = document.createElement("dialog");
  dialog.className = "enlarged";
  dialog.setAttribute("aria-label", "Figure");
  dialog.innerHTML = '<button type="button" class="close" autofocus>Close</button><div></div>';
  const close = dialog.querySelector("button"), room = dialog.querySelector("div");
  close.onclick = () => dialog.close();
  // Another script of the page takes the key before the dialog sees it.
  window.addEventListener("keydown", event => {
    if (event.key === "Escape" && dialog.open) dialog.close();
  }, true);
  dialog.onclick = event => { if (event.target === dialog) dialog.close(); };

  for (const image of document.querySelectorAll(".bd-article figure img")) {
    const link = document.createElement("a");
    link.className = "enlarge";
    link.href = image.getAttribute("src");
    link.title = "Enlarge";
    image.replaceWith(link);
    link.append(image);
    link.onclick = event => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      const large = image.cloneNode();
      large.removeAttribute("style");
      large.onclick = () => large.classList.toggle("whole");
      room.replaceChildren(large);
      if (!dialog.isConnected) document.body.append(dialog);
      dialog.showModal();
      close.focus();
    };
  }
});
