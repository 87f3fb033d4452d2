var e=document.getElementById("app");e&&(e.textContent="gemmule");
