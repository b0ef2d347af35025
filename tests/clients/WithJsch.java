import com.jcraft.jsch.JSch;
import com.jcraft.jsch.JSchException;
import java.io.ByteArrayInputStream;
import java.nio.charset.StandardCharsets;

/** WithJsch PORT HOSTKEY USER FIRST: connects to a bastion with JSch, and says what came of it in JSON. */
class WithJsch {
    public static void main(String[] args) throws JSchException {
        var jsch = new JSch();
        String known = "[127.0.0.1]:" + args[0] + " " + args[1] + "\n";
        jsch.setKnownHosts(new ByteArrayInputStream(known.getBytes(StandardCharsets.UTF_8)));
        var session = jsch.getSession(args[2], "127.0.0.1", Integer.parseInt(args[0]));
        session.setConfig("PreferredAuthentications", "keyboard-interactive");
        try {
            session.connect(30_000);
            System.out.println("{\"connected\": \"" + session.getServerVersion() + "\"}");
            session.disconnect();
        } catch (JSchException error) {
            System.out.println("{\"refused\": \"" + error.getMessage() + "\"}");
        }
    }
}
