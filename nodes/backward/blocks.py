"""The repeated blocks of a network, found by its structure alone."""

from torch.nn import Module, ModuleList, Sequential


def blocks(root: Module):
    """The innermost children of ModuleLists that are more than a layer."""
    for child in root.children():
        if isinstance(child, ModuleList):
            for item in child:
                yield from _unit(item)
        elif isinstance(child, Sequential) and any(_has_list_of_blocks(m) for m in child):
            yield from _unit(child)  # a UNet's middle block
        else:
            yield from blocks(child)


def _unit(item):
    if isinstance(item, (ModuleList, Sequential)):  # UNets call the children of these themselves
        for child in item:
            yield from _unit(child)
    elif _has_list_of_blocks(item):
        yield from blocks(item)
    elif sum(not any(m.children()) for m in item.modules()) > 1:  # a single layer keeps only its weight
        yield item


def _has_list_of_blocks(module):
    lists = (m for m in module.modules() if isinstance(m, ModuleList) and len(m))
    return any(all(next(child.children(), None) is not None for child in found) for found in lists)
