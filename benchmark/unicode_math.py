# ruff: noqa: RUF001 - the symbols are meant
"""Show the little LaTeX that docstrings hold as a terminal can: ``\\beta\\, KL(p \\| q)`` as ``β KL(p ‖ q)``."""

import re

_SYMBOLS = {
    **{"alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "varepsilon": "ε", "eta": "η"},
    **{"theta": "θ", "kappa": "κ", "lambda": "λ", "mu": "μ", "nu": "ν", "xi": "ξ", "pi": "π", "rho": "ρ"},
    **{"sigma": "σ", "tau": "τ", "phi": "φ", "varphi": "φ", "chi": "χ", "psi": "ψ", "omega": "ω"},
    **{"Delta": "Δ", "Theta": "Θ", "Lambda": "Λ", "Pi": "Π", "Sigma": "Σ", "Phi": "Φ", "Omega": "Ω", "ell": "ℓ"},
    **{"le": "≤", "leq": "≤", "ge": "≥", "geq": "≥", "ne": "≠", "neq": "≠", "approx": "≈", "sim": "~", "in": "∈"},
    **{"nabla": "∇", "partial": "∂", "sum": "Σ", "prod": "Π", "infty": "∞", "cdot": "·", "times": "×", "odot": "⊙"},
    **{"to": "→", "gets": "←", "mapsto": "↦", "pm": "±", "subset": "⊂", "cup": "∪", "cap": "∩", "forall": "∀"},
    **{"langle": "⟨", "rangle": "⟩", "lfloor": "⌊", "rfloor": "⌋", "lceil": "⌈", "rceil": "⌉", "ldots": "…"},
    **{"dots": "…", "top": "ᵀ", "mid": "|", "left": "", "right": "", "big": "", "Big": "", "bigl": "", "bigr": ""},
}
_WORDS = r"mathrm|mathbf|mathbb|mathcal|mathit|text|operatorname|textstyle|displaystyle"
_ABOVE = {"hat": "\u0302", "tilde": "\u0303", "bar": "\u0304", "overline": "\u0304"}
_RAISED = str.maketrans("0123456789+-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻")
_LOWERED = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def readable(latex: str) -> str:
    """Spell a formula in Unicode on one line; a command that is not known loses its backslash and stays."""
    text = re.sub(rf"\\(?:{_WORDS})\s*\{{([^{{}}]*)\}}", r"\1", latex)
    text = re.sub(r"\\arg\s*\\(max|min)", r"arg \1", text)
    text = re.sub(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", lambda m: f"{_held(m[1])}/{_held(m[2])}", text)
    text = re.sub(r"\\sqrt\s*\{([^{}]*)\}", r"√(\1)", text)
    text = re.sub(r"(?:\\[,;:!> ]|~|\s)+", " ", text)
    text = re.sub(r"\s*\\q?quad\s*", "   ", text)
    text = text.replace(r"\|", "‖").replace(r"\{", "❴").replace(r"\}", "❵")
    text = re.sub(r"\\(hat|tilde|bar|overline)\s*(?:\{(\\?[A-Za-z]+)\}|(\\[A-Za-z]+|\w))", _with_accent, text)
    text = re.sub(r"(\\[A-Za-z]+)(?=\\)", r"\1 ", text)
    text = re.sub(r"\\([A-Za-z]+)", lambda m: _SYMBOLS.get(m[1], m[1]), text)
    text = re.sub(r"\^(?:\{([0-9+-]+)\}|(\d))", lambda m: (m[1] or m[2]).translate(_RAISED), text)
    text = re.sub(r"_(?:\{(\d+)\}|(\d))", lambda m: (m[1] or m[2]).translate(_LOWERED), text)
    text = re.sub(r"([_^])\{([^{}]*)\}", lambda m: m[1] + _held(m[2]), text)
    text = text.replace("{", "").replace("}", "").replace("❴", "{").replace("❵", "}")
    return re.sub(r" +([,.)])", r"\1", text).strip()


def _held(part: str) -> str:
    """Put brackets around what would fall apart without its braces."""
    part = part.strip()
    return part if re.fullmatch(r"\\?\w+'?|[\d.]+", part) else f"({part})"


def _with_accent(found: re.Match[str]) -> str:
    letter = found[2] or found[3]
    return _SYMBOLS.get(letter.removeprefix("\\"), letter.removeprefix("\\")) + _ABOVE[found[1]]
