// Hides widgets of REG's nodes that do nothing at the node's present settings. Their values stay: they are saved and queued as ever.
// Also: colours of the pack's own sockets and links, and a size at which a new plot can be read.
import { app } from "../../../scripts/app.js"

const FREE = ["schedule", "calibrated", "off"] // forms that need no product with the Jacobian

// {node: (value of a widget, is an input connected) => the widgets that do not act}. The value of a connected widget is unknown.
const IDLE = {
    REGGuidance: (value) => {
        const form = value("form")
        if (form === undefined) return []
        return [
            ...(FREE.includes(form) ? ["engine", "refresh"] : []),
            ...(form === "schedule" ? [] : ["data_std"]),
            ...(form === "off" ? ["gain", "strength", "start_percent", "end_percent", "skip_below"] : []),
        ]
    },
    REGScheduleCurve: (value, connected) => (connected("curve") ? ["points"] : []),
    REGAutoguidance: (value, connected) => (connected("negative") || value("cfg") !== 1 ? [] : ["cfg"]), // another cfg without it is an error
}

function hide(widget, hidden) {
    widget.hidden = hidden // for the canvas
    if (hidden) widget.computeSize = () => [0, -4] // older ones leave room for it, and 4 px between widgets
    else delete widget.computeSize
    // For Vue. `_state` is what newer pages draw from; they notice a change only there.
    for (const options of [widget._state?.options, widget.options]) if (options) options.hidden = hidden
}

// Older pages copy the widgets of a node for Vue when it is added, and once more when it is added again.
function copyAgain(node) {
    const callbacks = node.widgets.map((widget) => widget.callback)
    node.graph?.onNodeAdded?.(node)
    node.widgets.forEach((widget, i) => (widget.callback = callbacks[i])) // which the page would wrap at every time
}

const COLORS = { REG_TRACE: "#9fe0a0", REG_CALIBRATION: "#ff8fb8", REG_REWARD: "#c79bff" }
const SIZES = { REGTracePlot: [560, 860], REGSchedulePlot: [560, 640], REGCalibrate: [560, 1000] }

app.registerExtension({
    name: "comfyuireg.looks",
    setup() {
        for (const [type, color] of Object.entries(COLORS)) { // for the canvas; a palette that is loaded empties other colours
            for (const colors of [app.canvas.default_connection_color_byType, LGraphCanvas.link_type_colors])
                Object.defineProperty(colors, type, { get: () => color, set() {}, enumerable: true, configurable: true })
        }
        const style = new CSSStyleSheet() // for Vue; a palette removes what is set on an element itself
        style.replaceSync(`:root { ${Object.entries(COLORS).map(([type, color]) => `--color-datatype-${type}: ${color};`).join(" ")} }`)
        document.adoptedStyleSheets.push(style)
    },
    nodeCreated(node) {
        const size = SIZES[node.comfyClass] // a saved node has one, which it gets later
        if (size) node.setSize(size.map((side, i) => Math.max(side, node.size[i])))
    },
})

app.registerExtension({
    name: "comfyuireg.idle_widgets",
    nodeCreated(node) {
        const idle = IDLE[node.comfyClass]
        if (!idle) return
        const connected = (name) => node.inputs?.some((input) => input.name === name && input.link != null)
        const value = (name) => (connected(name) ? undefined : node.widgets.find((widget) => widget.name === name)?.value)
        let own = 0 // the height that the user gave the node
        let ours = node.size[1] // and the one that it was given last by this script

        const update = (loaded) => {
            const names = idle(value, connected).filter((name) => !connected(name))
            const changed = node.widgets.filter((widget) => !!widget.hidden !== names.includes(widget.name))
            if (!changed.length) return
            const before = node.computeSize()[1]
            for (const widget of changed) hide(widget, names.includes(widget.name))
            if (LiteGraph.vueNodesMode) { // there a node is as high as what is in it
                if (!changed[0]._state && !loaded) copyAgain(node)
                return
            }
            const after = node.computeSize()[1]
            if (Math.abs(node.size[1] - ours) > 1) own = node.size[1] > (loaded ? after : before) + 1 ? node.size[1] : 0
            ours = Math.max(after, own)
            node.setSize([node.size[0], ours])
            node.graph?.setDirtyCanvas(true, true)
        }
        const after = (object, name) => {
            const original = object[name]
            object[name] = function (...args) {
                const result = original?.apply(this, args)
                update(name === "onConfigure" || app.configuringGraph)
                return result
            }
        }
        for (const widget of node.widgets) after(widget, "callback")
        after(node, "onConfigure")
        after(node, "onConnectionsChange")
        update(false)
    },
})
