package rawjson

import "slices"

// Edit gathers replacements of parts of a document. Parts must not overlap.
type Edit struct {
	doc   []byte
	parts []part
}

type part struct {
	Span
	text []byte
}

// NewEdit starts an edit; the document is not changed by it.
func NewEdit(doc []byte) *Edit { return &Edit{doc: doc} }

// Replace puts a text in the place of a value.
func (e *Edit) Replace(at Span, text []byte) { e.parts = append(e.parts, part{at, text}) }

// Insert puts an item before the closing bracket of an object or array.
func (e *Edit) Insert(into Span, item []byte) {
	at := into.End - 1
	if skipSpace(e.doc, into.Start+1) != at {
		item = append([]byte{','}, item...)
	}
	e.Replace(Span{at, at}, item)
}

// Drop takes items out of an object or array; an array's items have no key.
// What is left keeps its bytes, but not the space between the items.
func (e *Edit) Drop(container Span, gone func(key string, value Span) (bool, error)) error {
	var kept []Span
	dropped := false
	note := func(key string, item, value Span) error {
		is, err := gone(key, value)
		if is {
			dropped = true
		} else {
			kept = append(kept, item)
		}
		return err
	}
	err := Elements(e.doc, container, func(value Span) error { return note("", value, value) })
	if err == nil {
		// A member starts where the one before it has ended.
		start := skipSpace(e.doc, container.Start+1)
		err = Members(e.doc, container, func(key string, value Span) error {
			member := Span{start, value.End}
			start = skipSpace(e.doc, skipSpace(e.doc, value.End)+1)
			return note(key, member, value)
		})
	}
	if err == nil && dropped {
		e.keep(container, kept)
	}
	return err
}

func (e *Edit) keep(container Span, items []Span) {
	out := []byte{e.doc[container.Start]}
	for i, item := range items {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(out, e.doc[item.Start:item.End]...)
	}
	e.Replace(container, append(out, e.doc[container.End-1]))
}

// Apply returns the edited document, or the document itself if nothing changes.
func (e *Edit) Apply() []byte {
	if len(e.parts) == 0 {
		return e.doc
	}
	slices.SortStableFunc(e.parts, func(a, b part) int { return a.Start - b.Start })
	size := len(e.doc)
	for _, p := range e.parts {
		size += len(p.text) - (p.End - p.Start)
	}
	out := make([]byte, 0, size)
	at := 0
	for _, p := range e.parts {
		out = append(append(out, e.doc[at:p.Start]...), p.text...)
		at = p.End
	}
	return append(out, e.doc[at:]...)
}
