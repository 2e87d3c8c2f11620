# cffi's generated module; cowork_nsrun._native is where its functions get their types.
from typing import Any

ffi: Any
lib: Any
