"""Make the CUDA wheel of PyTorch importable on a machine without the CUDA libraries.

    pip install --no-deps torch==2.15.0 && python install_torch.py

The wheel links against libcudart, libcublas, ... which its (here skipped) dependencies
would bring. None of them is called on a CPU. For each missing library this script reads
which versioned symbols the wheel wants from it and builds a stub with gcc that defines
exactly those, all of them trivial functions. Needs gcc and binutils.
"""

import collections
import pathlib
import re
import subprocess
import sysconfig
import tempfile

TORCH = pathlib.Path(sysconfig.get_paths()["purelib"]) / "torch"
LIB = TORCH / "lib"


def read(*args):
    return subprocess.run(args, capture_output=True, text=True, check=True).stdout


def missing_library(name):
    """True when the dynamic loader would find `name` neither beside torch nor in the system."""
    if (LIB / name).exists():
        return False
    return name not in read("/sbin/ldconfig", "-p")


def main():
    binaries = sorted(LIB.glob("*.so*")) + sorted(TORCH.glob("_C*.so"))
    binaries = [b for b in binaries if b.stat().st_size > 4096]
    needed = collections.defaultdict(set)  # missing library -> version nodes wanted from it
    undefined = collections.defaultdict(set)  # version node ("" = none) -> symbols
    defined = set()
    for binary in binaries:
        for name in re.findall(r"NEEDED.*\[(.+)\]", read("readelf", "-dW", str(binary))):
            if missing_library(name):
                needed[name].add("")
        file = None
        for line in read("readelf", "-VW", str(binary)).splitlines():
            if m := re.search(r"Version: 1  File: (\S+)", line):
                file = m[1]
            elif (m := re.search(r"Name: (\S+)  Flags", line)) and file and missing_library(file):
                needed[file].add(m[1])
        for line in read("readelf", "--dyn-syms", "-W", str(binary)).splitlines():
            part = line.split()
            if len(part) < 8 or not part[0].endswith(":"):
                continue
            name, _, version = part[7].partition("@")
            if part[6] == "UND":
                undefined[version.lstrip("@")].add(name)
            else:
                defined.add(name)
    first = True
    for library, versions in sorted(needed.items()):
        blocks, names = [], set()
        for version in sorted(versions):
            # symbols without a version all go to the first stub: lookup is by name
            symbols = undefined[version] if version else set()
            if not version and first:
                symbols = {s for s in undefined[""] if re.match(r"(cu|nccl|nvsh|nvrtc|nvJit|NVP|nvml)", s)} - defined
                first = False
            names |= symbols
            if version:
                blocks.append(f"{version} {{ global: {'; '.join(sorted(symbols) or ['none'])}; }};")
        with tempfile.TemporaryDirectory() as tmp:
            source, script = pathlib.Path(tmp, "stub.c"), pathlib.Path(tmp, "stub.map")
            source.write_text("".join(f"int {n}() {{ return 35; }}\n" for n in sorted(names)))
            script.write_text("\n".join(blocks))
            args = ["gcc", "-shared", "-fPIC", "-w", "-fno-builtin", f"-Wl,-soname,{library}", str(source), "-o", str(LIB / library)]
            subprocess.run(args + ([f"-Wl,--version-script={script}"] if blocks else []), check=True)
        print(f"{library}: {len(names)} symbols")


main()
