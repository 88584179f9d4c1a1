package seccomp

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
)

// errSyntax is the cause for bytes in which no JSON value can be made out.
var errSyntax = errors.New("not valid JSON")

// span is the place of a value in a document: doc[start:end].
type span struct{ start, end int }

// kind is the first byte of the value: '{', '[', '"', 'n' for null and so on.
func (s span) kind(doc []byte) byte { return doc[s.start] }

// root finds the document's only value.
func root(doc []byte) (span, error) {
	start := skipSpace(doc, 0)
	end, err := skipValue(doc, start)
	if err != nil {
		return span{}, err
	}
	if skipSpace(doc, end) != len(doc) {
		return span{}, errSyntax
	}
	return span{start, end}, nil
}

func skipSpace(doc []byte, i int) int {
	for i < len(doc) && (doc[i] == ' ' || doc[i] == '\n' || doc[i] == '\t' || doc[i] == '\r') {
		i++
	}
	return i
}

// skipValue returns the index after the value that starts at i. It counts
// brackets and minds strings, no more: whether a part that nobody edits is
// well-formed is for the runtime to say, which gets it unchanged.
func skipValue(doc []byte, i int) (int, error) {
	depth := 0
	for ; i < len(doc); i++ {
		switch doc[i] {
		case '"':
			end, err := skipString(doc, i)
			if err != nil || depth == 0 {
				return end, err
			}
			i = end - 1
		case '{', '[':
			depth++
		case '}', ']':
			depth--
			if depth == 0 {
				return i + 1, nil
			}
			if depth < 0 {
				return 0, errSyntax
			}
		default:
			if depth == 0 {
				return skipScalar(doc, i)
			}
		}
	}
	return 0, errSyntax
}

func skipString(doc []byte, i int) (int, error) {
	for i++; i < len(doc); i++ {
		switch doc[i] {
		case '\\':
			i++
		case '"':
			return i + 1, nil
		}
	}
	return 0, errSyntax
}

// skipScalar passes a number, true, false or null.
func skipScalar(doc []byte, i int) (int, error) {
	start := i
	for i < len(doc) && (doc[i] >= '0' && doc[i] <= '9' || doc[i] >= 'a' && doc[i] <= 'z' || strings.IndexByte("+-.E", doc[i]) >= 0) {
		i++
	}
	if i == start {
		return 0, errSyntax
	}
	return i, nil
}

// members visits an object's members in order. Any other value has none: null
// stands for an absent object, and the wrong kind is for the runtime to refuse.
func members(doc []byte, object span, visit func(key string, value span) error) error {
	if object.kind(doc) != '{' {
		return nil
	}
	return items(doc, object, func(i int) (int, error) {
		if i >= len(doc) || doc[i] != '"' {
			return 0, errSyntax
		}
		end, err := skipString(doc, i)
		if err != nil {
			return 0, err
		}
		key, err := text(doc, span{i, end})
		if err != nil {
			return 0, err
		}
		i = skipSpace(doc, end)
		if i >= len(doc) || doc[i] != ':' {
			return 0, errSyntax
		}
		i = skipSpace(doc, i+1)
		end, err = skipValue(doc, i)
		if err != nil {
			return 0, err
		}
		return end, visit(key, span{i, end})
	})
}

// elements visits an array's elements in order; any other value has none.
func elements(doc []byte, array span, visit func(value span) error) error {
	if array.kind(doc) != '[' {
		return nil
	}
	return items(doc, array, func(i int) (int, error) {
		end, err := skipValue(doc, i)
		if err != nil {
			return 0, err
		}
		return end, visit(span{i, end})
	})
}

// items walks what stands between two brackets, separated by commas. The
// function is given the start of an item and returns its end.
func items(doc []byte, s span, item func(i int) (int, error)) error {
	last := s.end - 1
	i := skipSpace(doc, s.start+1)
	if i == last {
		return nil
	}
	for {
		end, err := item(i)
		if err != nil {
			return err
		}
		i = skipSpace(doc, end)
		switch {
		case i == last:
			return nil
		case i > last || doc[i] != ',':
			return errSyntax
		}
		i = skipSpace(doc, i+1)
	}
}

// text decodes a string value. Any other kind is an empty text.
func text(doc []byte, s span) (string, error) {
	raw := doc[s.start:s.end]
	if raw[0] != '"' {
		return "", nil
	}
	plain := string(raw[1 : len(raw)-1])
	if strings.IndexByte(plain, '\\') < 0 {
		return plain, nil
	}
	var decoded string
	if err := json.Unmarshal(raw, &decoded); err != nil {
		return "", errSyntax
	}
	return decoded, nil
}

// quote encodes a string. The default escapes of "<", ">" and "&" are harmless:
// every decoder reads them back.
func quote(s string) []byte {
	raw, err := json.Marshal(s)
	if err != nil {
		return []byte(`""`) // unreachable: every string can be encoded
	}
	return raw
}

// splices gathers replacements of parts of a document. Parts do not overlap.
type splices struct {
	doc   []byte
	parts []part
}

type part struct {
	span
	text []byte
}

func (s *splices) replace(at span, text []byte) { s.parts = append(s.parts, part{at, text}) }

// insert puts an item before the closing bracket of an object or array.
func (s *splices) insert(into span, item []byte) {
	at := into.end - 1
	if skipSpace(s.doc, into.start+1) != at {
		item = append([]byte{','}, item...)
	}
	s.replace(span{at, at}, item)
}

// keep rewrites an object or array to hold the given items only.
func (s *splices) keep(container span, items []span) {
	out := []byte{s.doc[container.start]}
	for i, item := range items {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(out, s.doc[item.start:item.end]...)
	}
	s.replace(container, append(out, s.doc[container.end-1]))
}

// apply returns the edited document, or the document itself if nothing changes.
func (s *splices) apply() []byte {
	if len(s.parts) == 0 {
		return s.doc
	}
	slices.SortStableFunc(s.parts, func(a, b part) int { return a.start - b.start })
	size := len(s.doc)
	for _, p := range s.parts {
		size += len(p.text) - (p.end - p.start)
	}
	out := make([]byte, 0, size)
	at := 0
	for _, p := range s.parts {
		out = append(append(out, s.doc[at:p.start]...), p.text...)
		at = p.end
	}
	return append(out, s.doc[at:]...)
}
