"""Take helm out of the package that carries it, which lies in the folder of the first argument, into that folder."""

import io
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

folder = Path(sys.argv[1])
(archive,) = folder.glob("aws_cdk/*/_jsii/*.tgz")
with tarfile.open(archive) as outer:
    layer = outer.extractfile("package/lib/layer.zip")
    assert layer is not None
    with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
        data = inner.read("helm/helm")
shutil.rmtree(folder)
folder.mkdir()
(folder / "helm").write_bytes(data)
(folder / "helm").chmod(0o755)
