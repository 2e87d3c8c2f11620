for i in 1 2 3 4 5 6 7 8; do .venv/bin/pytest -p no:cacheprovider -q tests/vmm/test_devices.py tests/vmm/test_monitor.py -k "bad or serial or pause or good" 2>&1 | tail -1; done
