from benchmarks import mutants

CODE = '''"""A docstring with 1 < 2."""
import torch

def f(x: int = 3, *, on=True) -> "2":
    if x < 5 and on:
        raise ValueError(f"{x + 1}")
    x.clamp_(0, 1)
    return torch.flip(max(x, -x), dims=(1,))
'''


def test_faults_are_one_change_each_and_spare_words_and_types(tmp_path, monkeypatch):
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    (tmp_path / "stages/models").mkdir(parents=True)
    (tmp_path / "stages/models/f.py").write_text(CODE)
    changes = [mutant.change for mutant in mutants.mutants("stages/models/f.py")]
    for change in ("`x < 5` → `x <= 5`", "`x < 5 and on` → `x < 5 or on`", "`True` → `False`", "`3` → `4`"):
        assert changes.count(change) == 1
    assert "`x.clamp_(0, 1)` → `pass`" in changes
    assert "`torch.flip(max(x, -x), dims=(1,))` → `max(x, -x)`" in changes
    assert not [change for change in changes if "x + 1" in change or "1 <" in change or "int" in change]
    for mutant in mutants.mutants("stages/models/f.py"):
        lines = zip(CODE.splitlines(), mutant.content.decode().splitlines(), strict=True)
        assert [number for number, (old, new) in enumerate(lines, 1) if old != new] == [mutant.line]
