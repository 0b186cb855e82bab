"""What a host with Gaudi cards is checked for, without opening one."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tgi.config import Options
from tgi.planning.recipes import HABANA, MEGABYTES, VARIABLE

from .check import Check, fail, ok, warn
from .machine import GIB, MIB, Machine
from .releases import check_driver, check_firmware, check_software
from .smi import Smi, read_smi

NODES = "/dev/accel/accel[0-9]*"
"""The files of cards; those of the driver's control channel have other names."""
IDLE = 2048
"""MiB of a card that are in use while nobody uses it, and some to spare."""


def check_gaudi(machine: Machine, options: Options) -> Iterator[Check]:
    """All of these; where there is no card, the rest would say the same again."""
    yield check_software(machine.software)
    cards = pci_cards(machine)
    found = check_cards(machine, cards)
    yield found
    if found.state == "fail":
        return
    smi = read_smi(machine)
    yield check_driver(smi.driver, machine.software)
    yield check_firmware(smi.firmware, smi.driver)
    yield check_access(machine)
    yield check_health(machine)
    yield check_holders(machine, smi, options.num_shard or 1)
    yield check_visible(machine.environ, smi, len(machine.files(NODES)), options.num_shard or 1)
    yield check_numa(machine, cards)


def pci_cards(machine: Machine) -> list[Path]:
    """Folders of Habana's PCI devices."""
    every = machine.files("/sys/bus/pci/devices/*")
    return [folder for folder in every if _text(folder / "vendor") == HABANA]


def check_cards(machine: Machine, cards: Sequence[Path]) -> Check:
    """Whether there are any, and the driver has taken them."""
    name, nodes = "cards", machine.files(NODES)
    if not cards and not nodes:
        return fail(
            name, "There is no Gaudi in this machine.", "Start on a host with cards, or with --device cpu."
        )
    if nodes:
        return ok(name, f"{len(nodes)} Gaudi cards.")
    if machine.path("/sys/module/habanalabs").exists():
        advice = (
            "Start the container with --runtime=habana -e HABANA_VISIBLE_DEVICES=all, in Kubernetes with a "
            "limit of habana.ai/gaudi, so that it gets them."
        )
        return fail(
            name, f"{len(cards)} Gaudi cards, of which none is to be seen as /dev/accel/accel*.", advice
        )
    advice = "Install the driver on the host and load it: modprobe habanalabs_en habanalabs_cn habanalabs."
    return fail(name, f"{len(cards)} Gaudi cards, and the driver habanalabs is not loaded.", advice)


def check_access(machine: Machine) -> Check:
    """Whether this user may open the files of the cards."""
    name, nodes = "access", machine.files(NODES)
    barred = [node.name for node in nodes if not machine.may_use(node)]
    if not barred:
        return ok(name, "This user may open all cards.")
    found = f"This user may not open {_list(barred)} in /dev/accel."
    return fail(
        name,
        found,
        "Add the user to the group of these files, or start the container as one of it (--group-add).",
    )


def check_health(machine: Machine) -> Check:
    """What the driver says of each card."""
    name, states = "health", {}
    for folder in machine.files("/sys/class/accel/accel[0-9]*"):
        state = _text(folder / "device" / "status")
        if state:
            states[folder.name] = state
    ill = [f"{card} ({state})" for card, state in states.items() if state.lower() != "operational"]
    if ill:
        advice = "Reset them with `hl-smi -r -i BUS_ID` as root on the host; else restart it, and read dmesg."
        return fail(name, f"Not operational: {_list(ill)}.", advice)
    return ok(
        name, "All cards are operational." if states else "The driver does not tell the state of the cards."
    )


def check_holders(machine: Machine, smi: Smi, ranks: int) -> Check:
    """Who has a card open: it can be opened by one process only."""
    name, total = "holders", len(machine.files(NODES))
    held: dict[str, str] = {f"card {card}": f"{process} (pid {pid})" for card, pid, process in smi.holders}
    for link in machine.root.glob("proc/[0-9]*/fd/*"):
        try:
            target = os.readlink(link)
        except OSError:
            continue  # it has just been closed, or the process is somebody else's
        if match := re.fullmatch(r"/dev/accel/accel(\d+)", target):
            process = link.parent.parent
            held[f"card {match[1]}"] = f"{_text(process / 'comm')} (pid {process.name})"
    if held:
        found = f"In use: {', '.join(f'{card} by {who}' for card, who in sorted(held.items()))}."
        advice = (
            "End these processes, or leave these cards out of HABANA_VISIBLE_MODULES: one opens only once."
        )
        return (warn if total - len(held) >= ranks else fail)(name, found, advice)
    busy = [f"card {card.index} ({card.used} MiB)" for card in smi.cards if (card.used or 0) > IDLE]
    if busy:
        advice = (
            "Find who has them with `sudo hl-smi` on the host, which sees the processes of all containers."
        )
        found = f"Memory is in use of {_list(busy)}, by whom is not to be seen here."
        return (warn if total - len(busy) >= ranks else fail)(name, found, advice)
    return ok(name, "Nobody has a card open.")


def check_visible(environ: Mapping[str, str], smi: Smi, nodes: int, ranks: int) -> Check:
    """Whether there is a card for every rank, and the variables name cards that there are."""
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
            return fail(
                name, found, "Name the module_id of cards that `hl-smi -Q index,module_id -f csv` lists."
            )
    if ranks > count:
        advice = f"Start with --num-shard {count} or fewer, or let the container see more cards."
        return fail(name, f"--num-shard {ranks}, and {count} cards to be seen.", advice)
    return ok(name, f"{count} cards for {ranks} {'rank' if ranks == 1 else 'ranks'}.")


def check_numa(machine: Machine, cards: Sequence[Path]) -> Check:
    """Whether this process runs near its cards: copies to the others go through both sockets."""
    name = "NUMA"
    nodes = {
        int(folder.name.removeprefix("node")): _cores(_text(folder / "cpulist"))
        for folder in machine.files("/sys/devices/system/node/node[0-9]*")
    }
    near = {int(text) for card in cards if (text := _text(card / "numa_node")).isdigit()}
    status = machine.text("/proc/self/status")
    allowed = _cores(match[1]) if (match := re.search(r"Cpus_allowed_list:\s*(\S+)", status)) else set()
    if len(nodes) < 2 or not near or not allowed:
        return ok(name, "One node of memory for all cores and cards.")
    used = {node for node, cores in nodes.items() if cores & allowed}
    found = (
        f"The cards are at node {_list(sorted(near))}, and this process runs on node {_list(sorted(used))}."
    )
    if used <= near:
        return ok(name, found)
    place = ",".join(map(str, sorted(near)))
    advice = f"Start it with `numactl --cpunodebind={place} --membind={place}`, or take cards of one node."
    return warn(name, found, advice)


def check_recipes(machine: Machine, options: Options) -> Check:
    """Whether compiled graphs can be kept for the next start."""
    name, given = "recipe cache", machine.environ.get(VARIABLE, "").partition(",")[0]
    folder = options.recipe_cache or (Path(given) if given else None)
    if folder is None:
        advice = (
            "Give a folder that outlives the container with --recipe-cache: the next start is then quicker."
        )
        return warn(name, "What is compiled is not kept.", advice)
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not parent.is_dir() or not machine.may_use(parent):
        return fail(
            name, f"{folder} cannot be written.", "Let this user write there, or give another --recipe-cache."
        )
    _, free = machine.disk(parent)
    if free < MEGABYTES * MIB:
        advice = f"Make room for {MEGABYTES // 1024} GiB, which it may take, or give another --recipe-cache."
        return warn(name, f"{folder} has {free / GIB:.1f} GiB left.", advice)
    return ok(name, f"{folder} can be written, and has {free / GIB:,.0f} GiB left.")


def _cores(text: str) -> set[int]:
    """Of "0-3,8"."""
    found = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _list(items: Sequence[object]) -> str:
    return ", ".join(map(str, items))
