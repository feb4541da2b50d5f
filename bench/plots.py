from pathlib import Path
from bench.results import Result
def draw(result: Result, stem: Path) -> list[Path]:
    return []
