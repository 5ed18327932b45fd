// Loaded before anything is painted, so that a dark page does not flash: a theme that was chosen replaces the system's.
{
  let chosen = null;
  try {
    chosen = localStorage.getItem("dsv3c.theme");
  } catch {
    // The browser keeps nothing: the system's theme it is.
  }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
}
