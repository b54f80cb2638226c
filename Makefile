# Everything goes through `make setup`, which installs what is missing and is safe to run again.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

# The mount, its build requirements, and the tools that the tests and the demo check imagefs against.
PACKAGES := fuse3 gcc python3-dev python3-venv xz-utils util-linux fdisk gdisk \
	ntfs-3g dosfstools mtools exfatprogs exfat-fuse e2fsprogs btrfs-progs sleuthkit genisoimage parted attr \
	qemu-utils qemu-system-x86 ovmf libnbd-bin nbd-client gnutls-bin wimtools dislocker cryptsetup-bin lvm2 \
	hashdeep rsync
PROBE := fusermount3 gcc xz sfdisk sgdisk ntfs-3g mkfs.vfat mcopy mkfs.exfat mount.exfat-fuse \
	mke2fs mkfs.btrfs fls genisoimage parted setfattr qemu-img qemu-system-x86_64 nbdinfo nbd-client psktool wimlib-imagex \
	dislocker-metadata cryptsetup lvm hashdeep rsync

# What `make test-vm` needs beyond that.
VM_PACKAGES := qemu-system-x86 debootstrap mmdebstrap ovmf cpio dpkg
VM_PROBE := qemu-system-x86_64 debootstrap mmdebstrap cpio dpkg-deb

# What `make bench` compares with.
BENCH_PACKAGES := qemu-utils zstd
BENCH_PROBE := qemu-img zstd ntfsclone

install = $(SUDO) apt-get update -qq && \
	DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $(1)
# $(call need,tools,packages): install the packages where one of the tools is missing.
need = missing=""; for tool in $(1); do \
		PATH="$$PATH:/usr/sbin:/sbin" command -v $$tool >/dev/null || missing="$$missing $$tool"; done; \
	if [ -n "$$missing" ]; then echo "installing packages for:$$missing"; $(call install,$(2)); fi

.PHONY: setup packages vm-packages wine-packages bench-packages demo test test-vm test-wine bench lint format clean

setup: packages $(VENV)/.installed

packages:
	@$(call need,$(PROBE),$(PACKAGES))
	@ls /usr/share/OVMF/OVMF_CODE_4M.fd >/dev/null 2>&1 || { $(call install,ovmf); }

vm-packages:
	@$(call need,$(VM_PROBE),$(VM_PACKAGES))

wine-packages:
	@ls /usr/lib/wine/wine64 >/dev/null 2>&1 || { $(call install,wine64); }

bench-packages:
	@$(call need,$(BENCH_PROBE),$(BENCH_PACKAGES))

$(VENV)/.installed: pyproject.toml $(wildcard formats/native/*.[chp]*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "imagefs needs Python 3.11 or newer; set PYTHON=..."; exit 1; }
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[fuse,dev]'
	@touch $@

demo: setup
	@$(BIN)/python -m tests.demo

test: setup
	@PATH="$$PATH:/usr/sbin:/sbin" $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

# In virtual machines, a quarter of an hour: what needs devices, volumes and signals of its own. Needs root.
test-vm: setup vm-packages
	@PATH="$$PATH:/usr/sbin:/sbin" $(BIN)/python -m tests.vm

# Windows' Python under wine, on Debian and Ubuntu; what it is made of comes from the package index.
test-wine: setup wine-packages
	@PATH="$$PATH:/usr/sbin:/sbin" $(BIN)/python -m tests.wine

bench: setup bench-packages
	@PATH="$$PATH:/usr/sbin:/sbin" $(BIN)/python -m tests.benchmarks

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32 formats mounters imagefs

format: setup
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
