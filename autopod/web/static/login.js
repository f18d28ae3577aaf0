"use strict";

async function logIn(token) {
  const answer = await fetch("/login", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ token }),
  });
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.error);
  localStorage.setItem("autopod-secret", said.secret);
  localStorage.setItem("autopod-role", said.role);
  location.replace("/");
}

document.getElementById("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const said = document.getElementById("said");
  said.textContent = "";
  try {
    await logIn(document.getElementById("token").value.trim());
  } catch (error) {
    said.textContent = error.message;
  }
});

const theme = localStorage.getItem("autopod-theme");
if (theme) document.documentElement.dataset.theme = theme;

// Who has shown a certificate, or may read without a token, needs none; but may want to be another.
if (!location.hash) logIn("").catch(() => {});
