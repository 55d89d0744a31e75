// Sets the chosen theme before anything is painted; without a choice, the system's holds.
try {
  const theme = localStorage.getItem("stagedoor-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Without storage there is no choice to keep.
}
