import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["decode", "sources", "demo", "statistics", "bad_files", "workers"])
def test_listing_and_decoding_images_does_not_import_torch(module: str) -> None:
    code = f"import sys, hardpatch.data.{module}; print(sorted({{'torch', 'pyarrow', 'PIL'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
