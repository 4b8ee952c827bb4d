"""S12: a key is looked up by its hash and compared in constant time; nothing compares secrets with ==."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.security.conftest import Api
from waybill.ledger import keys

ROOT = Path(__file__).parents[2]
SECRET = ("secret", "password", "api_key", "signature", "token_hash", "hashed", ".hash")


def test_s12_the_ledger_has_no_key_only_its_hash(api: Api) -> None:
    key = api.key()

    [row] = api.sql("select * from api_keys")

    assert row["hash"] == keys.hash_of(key)
    assert key not in str(row)
    assert key[:-4] not in str(row)


def test_s12_hashes_are_compared_in_constant_time() -> None:
    tree = ast.parse((ROOT / "waybill/ledger/keys.py").read_text())
    body = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "is_same")

    assert "compare_digest" in ast.unparse(body)
    assert "is_same(" in (ROOT / "producers/gateway/keys.py").read_text()


def test_s12_no_code_compares_a_secret_with_equals() -> None:
    found = []
    for folder in ("waybill", "producers", "policies"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Compare) and any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
                    sides = [ast.unparse(side) for side in (node.left, *node.comparators)]
                    is_text = all(not isinstance(side, ast.Constant) for side in (node.left, *node.comparators))
                    if is_text and any(side.lower().endswith(SECRET) for side in sides):
                        found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")

    assert found == []
