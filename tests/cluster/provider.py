"""Node provider of the autoscaler's test: nodes are raylets on this machine."""

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class LogicalNodes(FakeMultiNodeProvider):
    """Ray's fake provider, but without nodes that are dead, as in a cloud."""

    def non_terminated_nodes(self, tag_filters):
        with self.lock:
            dead = [name for name, entry in self._nodes.items() if "node" in entry and not is_alive(entry["node"])]
            for name in dead:
                self._terminate_node(self._nodes.pop(name))
        return super().non_terminated_nodes(tag_filters)


def is_alive(node) -> bool:
    return any(kind == "raylet" for kind, _ in node.live_processes())
