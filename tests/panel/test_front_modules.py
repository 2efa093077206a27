"""The front end's ES modules are joined into one: what can't be is told of here, and not in a page that stays empty."""

from __future__ import annotations

import pytest

from kernelk.widgets.model import join_modules

DOM = "export function h(tag) {\n  return tag;\n}\nexport const s = 1;\n"


@pytest.mark.parametrize(
    "line",
    [
        'import { h, s } from "./dom.js";',
        "import { h, s } from './dom.js'",
        'import {\n  h,\n  s,\n} from "./dom.js";',
        'import { h, s }\n  from "./dom.js";',
    ],
)
def test_an_import_may_be_written_in_any_way(line: str) -> None:
    text = join_modules({"dom": DOM, "panel": f"// what it is\n{line}\nexport default {{ render: h }};\n"})
    assert "import" not in text
    assert "./dom.js" not in text
    assert text.count("export") == 1
    assert text.startswith("function h(tag) {")


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({"dom": DOM, "panel": 'import { t } from "./dom.js";'}, r"panel\.js imports 't', which no dom\.js"),
        ({"bars": 'import { h } from "./dom.js";', "dom": DOM}, r"bars\.js imports 'h', which no dom\.js before it"),
        ({"dom": DOM, "panel": 'import * as dom from "./dom.js";'}, r"panel\.js has `import \* as dom"),
        ({"dom": DOM, "panel": 'import { h as make } from "./dom.js";'}, r"panel\.js imports 'h as make'"),
        ({"dom": DOM, "panel": 'import "./dom.js";'}, r"panel\.js has `import"),
        ({"dom": "export { h };\n", "panel": ""}, r"dom\.js has `export \{ h \}"),
        ({"dom": "export default 1;\n", "panel": ""}, r"dom\.js has `export default"),
        ({"dom": DOM, "bars": "const s = 2;\n"}, r"bars\.js and dom\.js both declare 's'"),
    ],
)
def test_what_cannot_be_joined_is_told(texts: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        join_modules(texts)
