"""Checks of a host with Gaudi cards that open no card, and advice about errors of Gaudi's software."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tgi.config import Options
from tgi.plugins.check import Check, Doctor, fail, ok, warn
from tgi.plugins.machine import GIB, MIB, Machine

from . import RECIPE_MEGABYTES, RECIPE_VARIABLE, SPEC, pci_folders, read_text
from .gaudi_versions import PLUGIN, check_driver, check_firmware, check_software
from .hl_smi import HlSmi, read_hl_smi

MAX_IDLE = 2048
"""Memory of a card that may be in use while no process has it, in MiB."""


class GaudiDoctor(Doctor):
    """Checks of Gaudi's software, driver and cards."""

    advice = {  # noqa: RUF012
        "acquire": "Another process has the card, or HABANA_VISIBLE_MODULES names none: see holders above.",
        "cannot be used here": "Use Intel's PyTorch image, or --device cpu.",
        "imported before": "Set PT_HPU_LAZY_MODE before the server starts, and let nothing else change it.",
        "out of memory": "Find the process that holds the card's memory with hl-smi, and end it.",
        "Allocation failed": "Find the process that holds the card's memory with hl-smi, and end it.",
        "cpu fallback": "An operation has no kernel in this release of Gaudi's software: use another one.",
        "HCCL": "Check HABANA_VISIBLE_MODULES, and the links between the cards with Intel's hccl_demo.",
    }
    wrong_result = (
        "Do not serve with it: answers would be wrong. Try the other PT_HPU_LAZY_MODE, or another release."
    )
    crash = "Look for the reason in dmesg and in Gaudi's logs (HABANA_LOGS), and reset the card."
    little_memory = (
        "Find the processes that hold the rest with hl-smi and end them: the KV cache gets what is left."
    )
    links = "Serve on one card, and check the links with `hl-smi -n link` or Intel's hccl_demo."

    def checks(self, machine: Machine, options: Options) -> Iterator[Check]:
        """Yield all checks, or those before the one that finds no card: the others would repeat it."""
        versions = machine.versions(("python", "torch", PLUGIN))
        yield check_software(versions)
        folders = pci_folders(machine)
        cards = check_cards(machine, folders)
        yield cards
        if cards.state == "fail":
            return
        ranks, smi = options.ranks, read_hl_smi(machine)
        yield check_driver(smi.driver, versions)
        yield check_firmware(smi.firmware, smi.driver)
        yield check_access(machine)
        yield check_health(machine)
        yield check_holders(machine, smi, ranks)
        yield check_visible(machine.environ, smi, len(machine.files(SPEC.card_files)), ranks)
        yield check_numa(machine, folders)
        yield check_recipes(machine, options)


def check_cards(machine: Machine, folders: Sequence[Path]) -> Check:
    """Check that the machine has cards, and that the driver has created their files."""
    name, nodes = "cards", machine.files(SPEC.card_files)
    if not folders and not nodes:
        return fail(
            name, "This machine has no Gaudi card.", "Start on a host with cards, or with --device cpu."
        )
    if nodes:
        return ok(name, f"{len(nodes)} Gaudi cards.")
    if machine.path("/sys/module/habanalabs").exists():
        advice = (
            "Give them to the container: with --runtime=habana -e HABANA_VISIBLE_DEVICES=all in Docker, with "
            "a limit of habana.ai/gaudi in Kubernetes."
        )
        return fail(
            name, f"{len(folders)} Gaudi cards, none of which is visible as /dev/accel/accel*.", advice
        )
    advice = "Install the driver on the host and load it: modprobe habanalabs_en habanalabs_cn habanalabs."
    return fail(name, f"{len(folders)} Gaudi cards, and the driver habanalabs is not loaded.", advice)


def check_access(machine: Machine) -> Check:
    """Check that this user may open the files of the cards."""
    name, nodes = "access", machine.files(SPEC.card_files)
    barred = [node.name for node in nodes if not machine.may_use(node)]
    if not barred:
        return ok(name, "This user may open all cards.")
    return fail(
        name,
        f"This user may not open {_list(barred)} in /dev/accel.",
        "Add the user to the group of these files, or start the container with that group (--group-add).",
    )


def check_health(machine: Machine) -> Check:
    """Check the state of each card in the driver."""
    name, states = "health", {}
    for folder in machine.files("/sys/class/accel/accel[0-9]*"):
        if state := read_text(folder / "device" / "status"):
            states[folder.name] = state
    ill = [f"{card} ({state})" for card, state in states.items() if state.lower() != "operational"]
    if ill:
        advice = "Reset them with `hl-smi -r -i BUS_ID` as root on the host; if that fails, restart the host."
        return fail(name, f"Not operational: {_list(ill)}.", advice)
    return ok(
        name, "All cards are operational." if states else "The driver does not report the cards' state."
    )


def check_holders(machine: Machine, smi: HlSmi, ranks: int) -> Check:
    """Check that no process has a card open: a card can be opened by one process only."""
    name, total = "holders", len(machine.files(SPEC.card_files))
    held: dict[str, str] = {f"card {card}": f"{process} (pid {pid})" for card, pid, process in smi.holders}
    for link in machine.root.glob("proc/[0-9]*/fd/*"):
        try:
            target = os.readlink(link)
        except OSError:
            continue  # closed in the meantime, or of another user's process
        if match := re.fullmatch(r"/dev/accel/accel(\d+)", target):
            process = link.parent.parent
            held[f"card {match[1]}"] = f"{read_text(process / 'comm')} (pid {process.name})"
    if held:
        found = f"In use: {', '.join(f'{card} by {process}' for card, process in sorted(held.items()))}."
        advice = "End these processes, or leave their cards out of HABANA_VISIBLE_MODULES."
        return (warn if total - len(held) >= ranks else fail)(name, found, advice)
    busy = [f"card {card.index} ({card.used} MiB)" for card in smi.cards if (card.used or 0) > MAX_IDLE]
    if busy:
        advice = "Find the processes with `sudo hl-smi` on the host, which sees all containers."
        found = f"Memory of {_list(busy)} is in use by processes that are not visible here."
        return (warn if total - len(busy) >= ranks else fail)(name, found, advice)
    return ok(name, "No process has a card open.")


def check_visible(environ: Mapping[str, str], smi: HlSmi, nodes: int, ranks: int) -> Check:
    """Check that every rank has a card, and that the variables name cards that exist."""
    name = "visible cards"
    modules = {str(card.module) for card in smi.cards if card.module is not None}
    listed = environ.get("HABANA_VISIBLE_MODULES", "all")
    count = nodes
    if listed not in ("", "all"):
        chosen = listed.split(",")
        count = len(chosen)
        unknown = [module for module in chosen if modules and module not in modules]
        if unknown:
            found = (
                f"HABANA_VISIBLE_MODULES names {_list(unknown)}, and the cards are {_list(sorted(modules))}."
            )
            advice = "Name cards by the module_id that `hl-smi -Q index,module_id -f csv` lists."
            return fail(name, found, advice)
    if ranks > count:
        advice = f"Start with --num-shard {count} or fewer, or let the container see more cards."
        return fail(name, f"--num-shard is {ranks}, and {count} cards are visible.", advice)
    return ok(name, f"{count} cards for {ranks} {'rank' if ranks == 1 else 'ranks'}.")


def check_numa(machine: Machine, folders: Sequence[Path]) -> Check:
    """Check that this process runs near its cards: copies to others go through both sockets."""
    name = "NUMA"
    nodes = {
        int(folder.name.removeprefix("node")): _cores(read_text(folder / "cpulist"))
        for folder in machine.files("/sys/devices/system/node/node[0-9]*")
    }
    near = {int(text) for folder in folders if (text := read_text(folder / "numa_node")).isdigit()}
    status = machine.text("/proc/self/status")
    allowed = _cores(match[1]) if (match := re.search(r"Cpus_allowed_list:\s*(\S+)", status)) else set()
    if len(nodes) < 2 or not near or not allowed:
        return ok(name, "All cores and cards share one memory node.")
    used = {node for node, cores in nodes.items() if cores & allowed}
    found = (
        f"The cards are at node {_list(sorted(near))}, and this process runs on node {_list(sorted(used))}."
    )
    if used <= near:
        return ok(name, found)
    place = ",".join(map(str, sorted(near)))
    advice = f"Start it with `numactl --cpunodebind={place} --membind={place}`, or use cards of one node."
    return warn(name, found, advice)


def check_recipes(machine: Machine, options: Options) -> Check:
    """Check that compiled graphs can be kept for the next start."""
    name, configured = "recipe cache", machine.environ.get(RECIPE_VARIABLE, "").partition(",")[0]
    folder = options.recipe_cache or (Path(configured) if configured else None)
    if folder is None:
        advice = (
            "Name a folder that outlives the container with --recipe-cache: the next start is then faster."
        )
        return warn(name, "Compiled graphs are not kept.", advice)
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not parent.is_dir() or not machine.may_use(parent):
        return fail(
            name, f"{folder} cannot be written.", "Let this user write there, or name another --recipe-cache."
        )
    _, free = machine.disk(parent)
    if free < RECIPE_MEGABYTES * MIB:
        advice = (
            f"Free {RECIPE_MEGABYTES // 1024} GiB, which the cache may take, or name another --recipe-cache."
        )
        return warn(name, f"{folder} has {free / GIB:.1f} GiB left.", advice)
    return ok(name, f"{folder} can be written, and has {free / GIB:,.0f} GiB left.")


def _cores(text: str) -> set[int]:
    """Return the numbers in a list such as "0-3,8"."""
    cores = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        cores |= set(range(int(first), int(last or first) + 1))
    return cores


def _list(items: Sequence[object]) -> str:
    return ", ".join(map(str, items))
