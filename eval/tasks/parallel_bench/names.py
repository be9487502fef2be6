"""The people who wait in line."""

from __future__ import annotations

NAMES = (
    *("Ada", "Ben", "Cleo", "Dora", "Emil", "Faye", "Gus", "Hana", "Igor", "Jane"),
    *("Kurt", "Lena", "Max", "Nina", "Otto", "Pia", "Quinn", "Rosa", "Sven", "Tara"),
    *("Ugo", "Vera", "Walt", "Xenia", "Yuri", "Zara", "Abel", "Bela", "Carl", "Dina"),
    *("Elsa", "Finn", "Gina", "Hugo", "Iris", "Jack", "Kira", "Leon", "Mona", "Noel"),
    *("Olga", "Paul", "Rita", "Seth", "Tess", "Umar", "Vito", "Wanda", "York", "Zeno"),
)
